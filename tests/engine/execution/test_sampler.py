"""The sampler equals transformers in what it keeps, softmax in how often, and itself in any batch."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manylora.engine.execution.sampler import Drawn, Sampler, SamplingRows
from manylora.engine.logits_rules import LogitsRules, Penalties, logits_rules
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.kernels.sampling import uniform

GREEDY = SamplingParams(temperature=0.0)


def random_logits(rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


class Row(NamedTuple):
    params: SamplingParams
    position: int
    rules: LogitsRules | None


def row(
    params: SamplingParams,
    *,
    position: int = 0,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    least: int = 0,
    ends: Sequence[int] = (),
) -> Row:
    """A row after a prompt and generated tokens. `least`: tokens before one of `ends` may come."""
    request = Request(
        id=RequestId("r1"),
        flow=Flow("a"),
        salt="",
        tokens=tuple(prompt),
        adapter=None,
        sampling=params,
        stop=StopParams(max_new_tokens=99, min_new_tokens=least),
    )
    rules = logits_rules(request, ends)
    if rules is not None:
        for token_id in generated:
            rules.advance(token_id)
    return Row(params, position, rules)


def columns(rows: Sequence[Row]) -> SamplingRows:
    return SamplingRows([row.params for row in rows], [row.position for row in rows], [row.rules for row in rows])


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    return Sampler().sample(logits, columns(rows))


def sample_ahead(logits: Tensor, rows: Sequence[Row], drafts: Sequence[tuple[int, ...]]) -> list[tuple[Drawn, ...]]:
    return Sampler().sample_ahead(logits, columns(rows), drafts)


def draw(logits: Tensor, params: SamplingParams, **history: Any) -> Drawn:
    """Draw once from one row of logits, (vocab,)."""
    return sample(logits[None], [row(params, **history)])[0]


def reported(logits: Tensor, params: SamplingParams, **history: Any) -> Tensor:
    """The log-probabilities of all tokens as the sampler reports them: (vocab,), at most 20 tokens."""
    alternatives = draw(logits, replace(params, num_logprobs=len(logits)), **history).alternatives
    by_token = dict(alternatives)
    return torch.tensor([by_token[token] for token in range(len(logits))], dtype=torch.float64)


def drawn_tokens(logits: Tensor, params: SamplingParams, draws: int) -> Counter[int]:
    """How often each token comes at positions [0, draws)."""
    batch = logits.expand(draws, -1)
    return Counter(drawn.token_id for drawn in sample(batch, [row(params, position=p) for p in range(draws)]))


def allowed_tokens(logits: Tensor, params: SamplingParams) -> list[int]:
    """Every token that can be drawn, likeliest first.

    The token drawn goes down the ranks as the random number goes from 0 to 1, so halving finds each change of it.
    """
    with pytest.MonkeyPatch.context() as patch:

        def drawn_at(point: float) -> int:
            patch.setattr("manylora.kernels.sampling.uniform", lambda seed, position: point)
            return draw(logits, params).token_id

        def between(low: float, first: int, high: float, last: int) -> list[int]:
            if first == last or high - low < 1e-7:
                return []
            middle = (low + high) / 2
            token = drawn_at(middle)
            return [*between(low, first, middle, token), token, *between(middle, token, high, last)]

        low, high = 0.0, 1 - 2.0**-53
        first, last = drawn_at(low), drawn_at(high)
        return list(dict.fromkeys([first, *between(low, first, high, last), last]))


# --- greedy ---------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_highest_logit_of_each_row() -> None:
    logits = random_logits(7, 1001)
    drawn = sample(logits, [row(GREEDY)] * 7)
    assert [answer.token_id for answer in drawn] == logits.argmax(dim=1).tolist()
    assert all(answer.logprob is None and answer.alternatives == () and answer.is_finite for answer in drawn)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(2, 5000)
    logits[0, [4321, 77, 900]] = 1.0
    assert [answer.token_id for answer in sample(logits, [row(GREEDY)] * 2)] == [77, 0]


def test_greedy_comes_after_penalties_and_biases() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    assert draw(logits, replace(GREEDY, repetition_penalty=2.0), prompt=[1]).token_id == 2
    assert draw(logits, replace(GREEDY, presence_penalty=1.5), generated=[1]).token_id == 2
    assert draw(logits, replace(GREEDY, logit_bias=((3, 5.0),))).token_id == 3


def test_greedy_ignores_the_filters() -> None:
    logits = random_logits(1, 200)[0]
    params = replace(GREEDY, top_k=3, top_p=0.1, typical_p=0.1, min_p=0.5)
    assert draw(logits, params).token_id == int(logits.argmax())


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 10), []) == []


# --- what the filters keep ------------------------------------------------------------------------------------------


def kept_by_transformers(logits: Tensor, params: SamplingParams) -> set[int]:
    """What the library's own list of processors keeps, so that their order is the library's too."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(logits), **shape))
    settings = transformers.GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k or 0,
        top_p=params.top_p,
        typical_p=params.typical_p or 1.0,
        min_p=params.min_p or None,
    )
    model._prepare_special_tokens(settings, kwargs_has_attention_mask=False)
    processors = model._get_logits_processor(settings, input_ids_seq_length=1)
    scores = processors(torch.zeros(1, 1, dtype=torch.long), logits[None])
    return set(torch.isfinite(scores[0]).nonzero().flatten().tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(top_k=1),
        SamplingParams(top_k=7),
        SamplingParams(top_k=500),
        SamplingParams(top_p=0.01),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.97, temperature=0.6),
        SamplingParams(typical_p=0.05),
        SamplingParams(typical_p=0.5),
        SamplingParams(typical_p=0.95, temperature=1.4),
        SamplingParams(min_p=0.05),
        SamplingParams(min_p=0.4, temperature=2.0),
        SamplingParams(top_k=20, top_p=0.8),
        SamplingParams(top_k=12, typical_p=0.7),
        SamplingParams(top_p=0.9, typical_p=0.6),
        SamplingParams(typical_p=0.6, min_p=0.3),
        SamplingParams(typical_p=0.6, min_p=0.1),
        SamplingParams(top_k=30, top_p=0.95, typical_p=0.9, min_p=0.1, temperature=1.3),
    ],
    ids=str,
)
def test_the_filters_keep_what_transformers_keeps(params: SamplingParams, seed: int) -> None:
    logits = random_logits(1, 40, seed=seed, scale=1.5)[0]
    assert set(allowed_tokens(logits, params)) == kept_by_transformers(logits, params)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.995])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_a_large_vocabulary_keeps_the_same_nucleus(top_p: float, scale: float) -> None:
    # Flat rows need more of the vocabulary ranked than the heads hold; the last token kept shows the set's size.
    logits = random_logits(1, 20_011, scale=scale)[0]
    order = torch.sort(logits, descending=True, stable=True).indices
    running = torch.softmax(logits.double(), dim=0)[order].cumsum(0)
    last = int((running < top_p).sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manylora.kernels.sampling.uniform", lambda seed, position: 1 - 2.0**-53)
        drawn = draw(logits, SamplingParams(top_p=top_p)).token_id
    # The exact edge may fall either way within the rounding of float32 weights.
    edge = int((order == drawn).nonzero())
    assert running[edge] == pytest.approx(float(running[last]), abs=1e-6)
    assert abs(edge - last) <= 1 + last // 1000


def test_top_k_keeps_exactly_k_of_equals_with_the_lowest_ids() -> None:
    logits = torch.zeros(30)
    logits[17] = 1.0
    assert allowed_tokens(logits, SamplingParams(top_k=4)) == [17, 0, 1, 2]


def test_top_p_keeps_at_least_one_token() -> None:
    logits = random_logits(1, 100)[0]
    assert allowed_tokens(logits, SamplingParams(top_p=1e-9)) == [int(logits.argmax())]


def test_tokens_barred_by_minus_infinity_are_never_drawn() -> None:
    logits = torch.full((5000,), -math.inf)
    logits[[3, 40, 4999]] = torch.tensor([0.0, 1.0, -1.0])
    mixes = [
        SamplingParams(),
        SamplingParams(top_k=50),
        SamplingParams(top_p=0.9999),
        SamplingParams(typical_p=0.9999),
        SamplingParams(temperature=1e300),
        SamplingParams(top_k=2000, top_p=0.999, typical_p=0.999, min_p=1e-6),
    ]
    for params in mixes:
        assert set(drawn_tokens(logits, params, 500)) <= {3, 40, 4999}


def test_the_coldest_temperature_is_greedy_and_the_hottest_uniform() -> None:
    logits = random_logits(1, 8)[0]
    assert set(drawn_tokens(logits, SamplingParams(temperature=5e-324), 100)) == {int(logits.argmax())}
    assert len(drawn_tokens(logits, SamplingParams(temperature=1e300), 400)) == 8


# --- how often ------------------------------------------------------------------------------------------------------


def chi_square_limit(freedom: int) -> float:
    """The 99.99 % quantile, by the cube-root approximation of Wilson and Hilferty."""
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0.7),
        SamplingParams(seed=3, top_k=5),
        SamplingParams(seed=4, top_p=0.8, temperature=1.5),
        SamplingParams(seed=5, typical_p=0.7),
        SamplingParams(seed=6, min_p=0.1),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_their_probability_says(params: SamplingParams) -> None:
    logits, draws = random_logits(1, 16, scale=1.0)[0], 4_000
    kept = sorted(kept_by_transformers(logits, params))
    expected = draws * torch.softmax(logits[kept].double() / params.temperature, dim=0)
    counts = drawn_tokens(logits, params, draws)
    assert set(counts) <= set(kept)
    observed = torch.tensor([counts[token] for token in kept])
    distance = float(((observed - expected) ** 2 / expected).sum())
    assert distance < chi_square_limit(len(kept) - 1)


def test_the_random_number_is_uniform_over_positions_and_over_seeds() -> None:
    for numbers in ([uniform(9, position) for position in range(2000)], [uniform(seed, 9) for seed in range(2000)]):
        assert all(0.0 <= number < 1.0 for number in numbers)
        counts = Counter(int(number * 20) for number in numbers)
        distance = sum((counts[cell] - 100) ** 2 / 100 for cell in range(20))
        assert distance < chi_square_limit(19)


def test_the_random_number_never_changes_between_releases() -> None:
    # A request's seed must give the same text next year; these were recorded once.
    recorded = [0.011546754286331562, 0.4074136540795371, 0.9111628788736804]
    assert [uniform(0, 0), uniform(42, 7), uniform(2**64 - 1, 131_072)] == recorded


def test_another_seed_or_position_gives_other_tokens() -> None:
    logits = random_logits(1, 1000, scale=0.1).expand(50, -1)
    first = [row(SamplingParams(seed=1), position=p) for p in range(50)]
    other_seed = [row(SamplingParams(seed=2), position=p) for p in range(50)]
    other_position = [row(SamplingParams(seed=1), position=p + 50) for p in range(50)]
    tokens = [[answer.token_id for answer in sample(logits, rows)] for rows in (first, other_seed, other_position)]
    assert tokens[0] == [answer.token_id for answer in sample(logits, first)]
    for other in tokens[1:]:
        assert sum(a == b for a, b in zip(tokens[0], other, strict=True)) < 5
    assert len(set(tokens[0])) > 30


# --- one row alone --------------------------------------------------------------------------------------------------

any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 1.7, 100.0]),
    top_k=st.none() | st.integers(1, 3000),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.2]),
    typical_p=st.sampled_from([None, 0.99, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 1e-4, 0.1, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, 1.1]),
    logit_bias=st.sampled_from([(), ((1, 4.0), (5, -100.0))]),
    bad_words=st.sampled_from([(), ((3,), (1, 2), (0, 1, 4))]),
    allowed_token_ids=st.sampled_from([None, None, tuple(range(1, 40))]),
    seed=st.integers(0, 2**64 - 1),
    num_logprobs=st.sampled_from([None, 0, 1, 20]),
)


@settings(max_examples=60)
@given(
    params=st.lists(any_params, min_size=1, max_size=6),
    vocab=st.sampled_from([50, 1023, 9001]),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    broken=st.none() | st.integers(0, 5),
    data=st.data(),
)
def test_a_row_in_any_batch_is_the_row_alone(
    params: list[SamplingParams], vocab: int, scale: float, broken: int | None, data: st.DataObject
) -> None:
    logits = random_logits(len(params), vocab, seed=data.draw(st.integers(0, 1000)), scale=scale)
    if broken is not None and broken < len(params):
        logits[broken, 7] = data.draw(st.sampled_from([math.nan, math.inf]))
    before = logits.clone()
    histories = data.draw(
        st.lists(st.lists(st.integers(0, 49), max_size=9), min_size=len(params), max_size=len(params))
    )
    rows = [
        row(one, position=index, prompt=history[:4], generated=history[4:])
        for index, (one, history) in enumerate(zip(params, histories, strict=True))
    ]
    together = sample(logits, rows)
    # A clone: the row alone also lies at another address, which must not matter to the vector instructions.
    alone = [sample(logits[index : index + 1].clone(), [one])[0] for index, one in enumerate(rows)]
    assert together == alone
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    assert [answer.is_finite for answer in together] == [index != broken for index in range(len(rows))]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(temperature=0.0, presence_penalty=1.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_row_is_told_and_leaves_the_others_unchanged(params: SamplingParams, value: float) -> None:
    logits = random_logits(3, 500)
    sound = sample(logits, [row(params)] * 3)
    logits[1, 123] = value
    answers = sample(logits, [row(params)] * 3)
    assert answers[1] == Drawn(token_id=123, is_finite=False)
    assert [answers[0], answers[2]] == [sound[0], sound[2]]


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_largest_top_k_keeps_every_token_and_leaves_the_other_rows_alone(top_k: int) -> None:
    logits = random_logits(2, 50)
    params = SamplingParams(temperature=1.0, seed=5)
    assert sample(logits, [row(params), row(replace(params, top_k=top_k))]) == sample(logits, [row(params)] * 2)


def test_a_row_with_no_token_left_is_not_finite() -> None:
    assert not draw(torch.full((10,), -math.inf), SamplingParams()).is_finite


# --- logits rules ---------------------------------------------------------------------------------------------------


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, prompt, generated = random_logits(1, 20)[0], [3, 3, 5, 19], [7, 3, 0]
    scores = process.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + generated]), logits[None].clone())[0]
    expected = torch.log_softmax(scores.double(), dim=0)
    actual = reported(logits, SamplingParams(repetition_penalty=1.7), prompt=prompt, generated=generated)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_frequency_and_presence_penalties_count_generated_tokens_only() -> None:
    logits = random_logits(1, 20)[0]
    params = SamplingParams(frequency_penalty=0.4, presence_penalty=-1.2)
    changed = logits.double()
    changed[7] -= 2 * 0.4 - 1.2
    changed[2] -= 0.4 - 1.2
    actual = reported(logits, params, prompt=[1, 7, 9], generated=[7, 2, 7])
    torch.testing.assert_close(actual, torch.log_softmax(changed, dim=0), atol=1e-6, rtol=0)


def test_all_penalties_and_biases_together_apply_in_order() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    params = SamplingParams(
        repetition_penalty=2.0,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias=((0, 1.0), (3, -2.0), (0, 0.5)),
    )
    changed = torch.tensor([2.0 / 2 - 2 * 0.5 - 0.25 + 1.5, -2.0 * 2, 1.0, 0.5 - 2.0], dtype=torch.float64)
    actual = reported(logits, params, prompt=[1], generated=[0, 0])
    torch.testing.assert_close(actual, torch.log_softmax(changed, dim=0), atol=1e-6, rtol=0)


def test_penalties_that_are_not_asked_for_are_not_kept() -> None:
    assert row(SamplingParams(), prompt=[1, 2, 3]).rules is None


@given(prompt=st.lists(st.integers(0, 99), max_size=40), generated=st.lists(st.integers(0, 99), max_size=80))
def test_counts_kept_token_by_token_are_those_of_the_whole_sequence(prompt: list[int], generated: list[int]) -> None:
    params = SamplingParams(repetition_penalty=4.0, frequency_penalty=0.5, presence_penalty=2.0)
    penalties = Penalties(params, prompt)
    for token_id in generated:
        penalties.advance(token_id)
    counts = Counter(generated)
    seen = set(prompt) | set(generated)
    logits = np.full(100, 8.0, dtype=np.float32)
    expected = [(2.0 if t in seen else 8.0) - 0.5 * counts[t] - (2.0 if t in counts else 0.0) for t in range(100)]
    assert LogitsRules([penalties]).apply(logits).tolist() == expected
    assert logits.tolist() == [8.0] * 100


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_an_extreme_repetition_penalty_does_not_break_a_sound_row(penalty: float) -> None:
    logits = torch.tensor([5.0, -5.0, 0.0, 1.0])
    assert draw(logits, SamplingParams(repetition_penalty=penalty), prompt=[0, 1, 2]).is_finite


def barred_by(logits: Tensor, params: SamplingParams, **history: Any) -> set[int]:
    """The tokens whose logits the rules set to -Inf; all others must keep their bits."""
    rules = row(params, **history).rules
    if rules is None:
        return set()
    changed = rules.apply(logits.numpy())
    barred = set(np.flatnonzero(changed == -np.inf).tolist())
    assert all(changed[token] == logits[token] for token in range(len(logits)) if token not in barred)
    return barred


token_ids = st.integers(0, 7)
words = st.lists(st.lists(token_ids, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)
histories = st.lists(token_ids, min_size=1, max_size=12)


@given(words, histories, st.lists(token_ids, max_size=12))
def test_bad_words_bar_what_transformers_bars(
    bad_words: list[tuple[int, ...]], prompt: list[int], generated: list[int]
) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits(1, 8)[0]
    oracle = process.NoBadWordsLogitsProcessor([list(word) for word in bad_words])
    scores = oracle(torch.tensor([prompt + generated]), logits[None].clone())[0]
    expected = {token for token in range(8) if scores[token] == -math.inf}
    params = SamplingParams(bad_words=tuple(bad_words))
    assert barred_by(logits, params, prompt=prompt, generated=generated) == expected


@given(st.integers(1, 5), st.sets(token_ids, min_size=1, max_size=3), st.integers(0, 7))
def test_min_new_tokens_bar_what_transformers_bars(least: int, ends: set[int], num_generated: int) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, prompt, generated = random_logits(1, 8)[0], [1, 2], [3] * num_generated
    oracle = process.MinNewTokensLengthLogitsProcessor(len(prompt), least, sorted(ends), device="cpu")
    scores = oracle(torch.tensor([prompt + generated]), logits[None].clone())[0]
    expected = {token for token in range(8) if scores[token] == -math.inf}
    history = {"prompt": prompt, "generated": generated, "least": least, "ends": sorted(ends)}
    assert barred_by(logits, SamplingParams(), **history) == expected


@given(st.sets(token_ids, min_size=1))
def test_allowed_tokens_alone_may_come(allowed: set[int]) -> None:
    logits = random_logits(1, 8)[0]
    params = SamplingParams(allowed_token_ids=tuple(allowed))
    assert barred_by(logits, params) == set(range(8)) - allowed
    assert draw(logits, replace(params, temperature=0.0)).token_id in allowed


def test_no_bias_lifts_a_bar() -> None:
    logits = random_logits(1, 8)[0]
    params = SamplingParams(logit_bias=((3, 100.0),), bad_words=((3,),), allowed_token_ids=(3, 4), temperature=0.0)
    assert draw(logits, params).token_id == 4


def test_a_token_that_the_row_lacks_is_passed_over() -> None:
    """An adapter's tokens widen a row only in a step with that adapter."""
    logits = random_logits(1, 8)[0]
    params = SamplingParams(logit_bias=((9, 1.0), (2, 0.0)), bad_words=((9,), (1, 9)), allowed_token_ids=(2, 9))
    assert draw(logits, params, prompt=[1], least=1, ends=[8]).token_id == 2


def test_a_row_whose_rules_leave_no_token_is_barred_and_a_broken_one_is_not() -> None:
    params = replace(GREEDY, allowed_token_ids=(2,), bad_words=((2,),))
    logits = random_logits(3, 8)
    logits[1, 4] = math.nan
    answers = sample(logits, [row(params), row(params), row(GREEDY)])
    assert [(one.is_finite, one.is_barred) for one in answers] == [(True, True), (False, False), (True, False)]
    assert answers[2].token_id == int(logits[2].argmax())


def test_a_sampler_keeps_nothing_of_a_batch_that_changed() -> None:
    sampler, logits = Sampler(), random_logits(4, 500)
    batches = [
        [row(SamplingParams(seed=seed), position=position) for seed in seeds]
        for position, seeds in enumerate([(1, 2), (1, 2), (2, 1), (1, 2, 3), (4,), (1, 2)])
    ]
    batches.append([row(replace(GREEDY, num_logprobs=2)), row(GREEDY)])
    batches.append([row(GREEDY), row(replace(GREEDY, num_logprobs=2))])
    for rows in batches:
        together = logits[: len(rows)]
        assert sampler.sample(together, columns(rows)) == sample(together, rows)


# --- log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_logprobs_are_log_softmax_before_temperature_and_filters(temperature: float) -> None:
    logits = random_logits(4, 5003)
    params = SamplingParams(temperature=temperature, top_k=5, top_p=0.9, num_logprobs=5)
    expected = torch.log_softmax(logits.double(), dim=1)
    for answer, line in zip(sample(logits, [row(params)] * 4), expected, strict=True):
        best = torch.sort(line, descending=True, stable=True)
        assert answer.logprob == pytest.approx(float(line[answer.token_id]), abs=1e-6)
        assert [token for token, _ in answer.alternatives] == best.indices[:5].tolist()
        assert [logprob for _, logprob in answer.alternatives] == pytest.approx(best.values[:5].tolist(), abs=1e-6)


def test_no_alternatives_still_give_the_logprob() -> None:
    answer = draw(random_logits(1, 100)[0], replace(GREEDY, num_logprobs=0))
    assert answer.logprob is not None
    assert answer.alternatives == ()


def test_alternatives_that_are_equal_come_by_id() -> None:
    logits = torch.zeros(3000)
    logits[2000] = -0.0
    logits[1500] = 1.0
    assert [t for t, _ in draw(logits, replace(GREEDY, num_logprobs=4)).alternatives] == [1500, 0, 1, 2]
    negative_zero = torch.full((6,), 0.0)
    negative_zero[2] = -0.0
    assert [t for t, _ in draw(negative_zero, replace(GREEDY, num_logprobs=6)).alternatives] == [0, 1, 2, 3, 4, 5]


def test_a_barred_alternative_has_an_unclamped_logprob() -> None:
    answer = draw(torch.tensor([0.0, -math.inf]), replace(GREEDY, num_logprobs=2))
    assert answer.alternatives == ((0, 0.0), (1, -math.inf))


# --- ahead ----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([1.0, 1.4]),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([(), ((2,), (1, 3), (4, 0))]),
    st.integers(0, 3),
    st.none() | st.just(2),
    st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=5), st.integers(0, 5)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_drawing_ahead_gives_what_one_draw_at_a_time_would(
    temperature: float,
    repetition: float,
    frequency: float,
    bad_words: tuple[tuple[int, ...], ...],
    least: int,
    num_logprobs: int | None,
    sequences: list[tuple[list[int], int]],
    seed: int,
) -> None:
    """Each draft is accepted up to some place and rejected there; the draws must be those of a loop of `sample`."""
    rows, drafts, expected, blocks = [], [], [], []
    for number, (prompt, accepted) in enumerate(sequences):
        params = SamplingParams(
            temperature=temperature,
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            bad_words=bad_words,
            num_logprobs=num_logprobs,
            seed=seed + number,
        )
        logits = random_logits(6, 50, seed=seed + number)
        logits[:, :5] += 3  # tokens that the rules know are likely
        ends: dict[str, Any] = {"prompt": prompt, "least": least, "ends": [0]}
        drawn: list[Drawn] = []
        for position in range(6):
            history = [answer.token_id for answer in drawn]
            drawn.append(draw(logits[position], params, position=position, generated=history, **ends))
        draft = [answer.token_id for answer in drawn[:5]]
        if accepted < 5:
            draft[accepted] = (draft[accepted] + 1) % 50
        rows.append(row(params, position=0, **ends))
        drafts.append(tuple(draft))
        expected.append(tuple(drawn[: accepted + 1]))
        blocks.append(logits)
    assert sample_ahead(torch.cat(blocks), rows, drafts) == expected


def test_drawing_ahead_leaves_the_rules_of_the_sequence_as_they_are() -> None:
    params = replace(GREEDY, frequency_penalty=1.0)
    one = row(params, prompt=[1])
    logits = torch.tensor([[0.0, 3.0, 2.5], [0.0, 3.0, 2.5], [0.0, 3.0, 2.5]])
    assert [answer.token_id for answer in sample_ahead(logits, [one], [(1, 2)])[0]] == [1, 2, 1]
    assert sample(logits[:1], [one])[0].token_id == 1


def test_drawing_ahead_ends_at_a_row_that_is_not_finite_and_reads_none_after_a_rejected_token() -> None:
    logits = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [0.0, 1.0]])
    assert [answer.is_finite for answer in sample_ahead(logits, [row(GREEDY)], [(1, 1)])[0]] == [True, False]
    assert [answer.is_finite for answer in sample_ahead(logits, [row(GREEDY)], [(0, 1)])[0]] == [True]
