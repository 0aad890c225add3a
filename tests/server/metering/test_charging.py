"""What is charged, row by row of the table in docs/billing.md."""

import pytest

from manylora.charging import Charge, SequenceUse, charge_of


def use(
    reason: str,
    delivered: int,
    *,
    committed: int | None = None,
    prompt: int = 0,
    computed: int = 0,
    is_callers: bool = False,
) -> SequenceUse:
    """Of a prompt of ten tokens, of which four were cached."""
    return SequenceUse(
        prompt=prompt,
        prompt_tokens=10,
        cached_tokens=4,
        committed=delivered if committed is None else committed,
        delivered=delivered,
        reason=reason,
        computed_tokens=10 if delivered else computed,
        is_callers=is_callers,
    )


@pytest.mark.parametrize(
    ("reason", "delivered", "is_streamed", "charged"),
    [
        ("length", 5, True, (10, 5)),
        ("length", 5, False, (10, 5)),
        ("end_of_sequence", 0, False, (10, 0)),  # a prompt that was scored and nothing more
        ("disconnect", 5, True, (10, 5)),
        ("disconnect", 5, False, (10, 5)),
        ("disconnect", 0, True, (0, 0)),
        ("abort", 0, False, (0, 0)),
        ("engine_failure", 5, True, (10, 5)),
        ("engine_failure", 5, False, (0, 0)),
        ("engine_failure", 0, True, (0, 0)),
        ("edge_lost", 5, True, (10, 5)),
        ("edge_lost", 5, False, (0, 0)),
        ("shutdown", 5, False, (0, 0)),
        ("adapter_failure", 0, True, (0, 0)),
        ("queue_timeout", 0, False, (0, 0)),
        ("rejected", 0, True, (0, 0)),
    ],
)
def test_each_end_is_charged_by_the_table(
    reason: str, delivered: int, is_streamed: bool, charged: tuple[int, int]
) -> None:
    charge = charge_of([use(reason, delivered, committed=delivered + 2)], is_streamed=is_streamed)
    assert (charge.charged_prompt_tokens, charge.charged_completion_tokens) == charged
    assert (charge.prompt_tokens, charge.cached_tokens, charge.completion_tokens) == (10, 4, delivered + 2)


def test_a_prompt_counts_once_and_every_sequence_counts() -> None:
    uses = [use("length", 3), use("length", 4), use("stop_string", 5, prompt=1), use("length", 6, prompt=1)]
    assert charge_of(uses, is_streamed=False) == Charge(
        prompt_tokens=20,
        cached_tokens=8,
        completion_tokens=18,
        charged_prompt_tokens=20,
        charged_completion_tokens=18,
        charged_cached_tokens=8,
    )


def test_one_failed_sequence_takes_a_whole_reply_away_but_not_what_was_streamed() -> None:
    uses = [use("length", 3), use("engine_failure", 1)]
    assert charge_of(uses, is_streamed=False).charged_completion_tokens == 0
    assert charge_of(uses, is_streamed=True).charged_completion_tokens == 4


@pytest.mark.parametrize("reason", ["disconnect", "abort"])
@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(("computed", "charged"), [(0, (0, 0)), (3, (3, 3)), (4, (4, 4)), (9, (9, 4)), (10, (10, 4))])
def test_who_leaves_before_the_first_token_pays_for_what_was_computed(
    reason: str, is_streamed: bool, computed: int, charged: tuple[int, int]
) -> None:
    charge = charge_of([use(reason, 0, computed=computed)], is_streamed=is_streamed)
    assert (charge.charged_prompt_tokens, charge.charged_cached_tokens) == charged
    assert (charge.prompt_tokens, charge.charged_completion_tokens) == (10, 0)


def test_sequences_of_one_prompt_pay_for_it_once_and_each_prompt_for_what_was_computed_of_it() -> None:
    uses = [use("disconnect", 0, computed=7), use("disconnect", 0, computed=5)]
    uses += [use("disconnect", 2, prompt=1), use("disconnect", 0, prompt=1, computed=4)]
    uses += [use("disconnect", 0, prompt=2)]
    charge = charge_of(uses, is_streamed=True)
    assert (charge.charged_prompt_tokens, charge.charged_cached_tokens) == (7 + 10, 4 + 4)
    assert charge.charged_completion_tokens == 2


@pytest.mark.parametrize("reason", ["engine_failure", "edge_lost", "shutdown", "queue_timeout", "incomplete"])
def test_a_fault_makes_free_what_its_caller_was_waiting_for(reason: str) -> None:
    """Also of the other prompts of a request, and although their sequences were then ended from the edge."""
    uses = [use(reason, 0, computed=9), use("disconnect", 0, prompt=1, computed=10)]
    for is_streamed in (True, False):
        charge = charge_of(uses, is_streamed=is_streamed)
        assert (charge.charged_prompt_tokens, charge.charged_cached_tokens) == (0, 0)
    uses.append(use("disconnect", 3, prompt=2))
    assert charge_of(uses, is_streamed=True).charged_prompt_tokens == 10  # of the prompt whose tokens came


def test_a_sequence_refused_for_what_the_caller_asked_frees_no_other() -> None:
    uses = [use("abort", 0, computed=10), use("rejected", 0, prompt=1, is_callers=True)]
    assert charge_of(uses, is_streamed=False).charged_prompt_tokens == 10
    uses[1] = use("rejected", 0, prompt=1)
    assert charge_of(uses, is_streamed=False).charged_prompt_tokens == 0
