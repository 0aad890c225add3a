"""What is charged, row by row of the table in docs/metering.md."""

import pytest

from manylora.charging import Charge, SequenceUse, charge_of


def use(reason: str, delivered: int, *, committed: int | None = None, prompt: int = 0) -> SequenceUse:
    return SequenceUse(
        prompt=prompt,
        prompt_tokens=10,
        cached_tokens=4,
        committed=delivered if committed is None else committed,
        delivered=delivered,
        reason=reason,
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
    )


def test_one_failed_sequence_takes_a_whole_reply_away_but_not_what_was_streamed() -> None:
    uses = [use("length", 3), use("engine_failure", 1)]
    assert charge_of(uses, is_streamed=False).charged_completion_tokens == 0
    assert charge_of(uses, is_streamed=True).charged_completion_tokens == 4
