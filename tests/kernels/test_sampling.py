"""The native draw takes the tokens of its numpy specification, for every filter and every shape of distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manylora.kernels.interface import Kernels
from manylora.kernels.sampling import SAMPLING_RULE, SamplingRules, mask_logits, sample_tokens, uniform
from tests.kernels.cases import BACK_ENDS, NATIVE, random

CLOSE = 2e-6
"""Share of the weight between the random number and the edge of its token within which either neighbour is right."""


@pytest.fixture(params=NATIVE, scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return BACK_ENDS[request.param]()


def make_rules(count: int, **fields: float) -> SamplingRules:
    rules = np.zeros(count, dtype=SAMPLING_RULE)
    rules["temperature"], rules["top_p"] = 1.0, 1.0
    rules["seed"], rules["position"] = 11, np.arange(count)
    for name, value in fields.items():
        rules[name] = value
    return rules


def is_close_call(logits: Tensor, rules: SamplingRules, row: int) -> bool:
    """Whether the token drawn changes if the row's random number moves by a rounding error of its sums."""
    line, rule = logits[row : row + 1], rules[row : row + 1].copy()
    point = uniform(int(rule["seed"][0]), int(rule["position"][0]))
    tokens = set()
    for moved in (point - CLOSE, point + CLOSE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("manylora.kernels.sampling.uniform", lambda *_, moved=moved: min(max(moved, 0.0), 1 - 1e-12))
            tokens.add(sample_tokens(line, rule)[0][0])
    return len(tokens) > 1


def assert_agrees(kernels: Kernels, logits: Tensor, rules: SamplingRules) -> None:
    found, peaks = kernels.sample(logits, rules)
    expected, expected_peaks = sample_tokens(logits, rules)
    np.testing.assert_array_equal(peaks, expected_peaks)
    wrong = [row for row in range(len(rules)) if found[row] != expected[row] and not is_close_call(logits, rules, row)]
    assert wrong == []


@given(data=st.data())
@settings(max_examples=2 * settings().max_examples)
def test_every_rule_draws_what_the_specification_draws(kernels: Kernels, data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from([1, 7, 16, 255, 256, 257, 1000, 20_011]))
    scale = data.draw(st.sampled_from([0.0, 0.01, 1.0, 3.0, 30.0]))
    count = data.draw(st.integers(1, 9))
    logits = random(data.draw(st.integers(0, 10_000)), count, vocab, scale=scale)
    if data.draw(st.booleans()):
        logits[:, :: data.draw(st.integers(2, 5))] = -math.inf
    if data.draw(st.booleans()):
        logits = logits.round()  # many equal ones
    rules = make_rules(
        count,
        temperature=data.draw(st.sampled_from([0.0, 1e-40, 0.05, 0.7, 1.0, 2.0, 50.0, 1e40])),
        top_k=data.draw(st.sampled_from([0, 1, 2, 40, 300, 100_000])),
        top_p=data.draw(st.sampled_from([1.0, 0.9999, 0.9, 0.3, 1e-9])),
        min_p=data.draw(st.sampled_from([0.0, 1e-4, 0.05, 0.9])),
        typical_p=data.draw(st.sampled_from([0.0, 0.0, 0.9])),
        seed=data.draw(st.integers(0, 2**64 - 1)),
    )
    rules["position"] += data.draw(st.integers(0, 2**40))
    assert_agrees(kernels, logits, rules)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 300, 1002])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_is_found_and_changes_no_other(
    kernels: Kernels, broken: float, where: int, temperature: float
) -> None:
    logits = random(3, 5, 1003)
    rules = make_rules(5, temperature=temperature)
    sound, _ = kernels.sample(logits, rules)
    logits[2, where] = broken
    assert_agrees(kernels, logits, rules)
    found, peaks = kernels.sample(logits, rules)
    assert math.isfinite(peaks[2]) == (broken == -math.inf)
    if broken != -math.inf:
        assert found[2] == where
    assert found[:2] + found[3:] == sound[:2] + sound[3:]


def test_a_row_of_nothing_but_barred_tokens_is_not_finite(kernels: Kernels) -> None:
    found, peaks = kernels.sample(torch.full((1, 500), -math.inf), make_rules(1))
    assert (found, peaks) == ([0], [-math.inf])


def test_the_first_of_equal_tokens_is_the_best(kernels: Kernels) -> None:
    logits = torch.zeros((2, 1003))
    logits[1, [900, 77, 300]] = 5.0
    assert kernels.sample(logits, make_rules(2, temperature=0.0))[0] == [0, 77]


def test_a_rows_draw_does_not_depend_on_the_other_rows(kernels: Kernels) -> None:
    logits, rules = random(9, 40, 5003), make_rules(40, temperature=0.8, top_p=0.95)
    together, _ = kernels.sample(logits, rules)
    assert [kernels.sample(logits[row : row + 1], rules[row : row + 1])[0][0] for row in range(40)] == together


def test_tokens_come_as_often_as_their_probability_says(kernels: Kernels) -> None:
    draws = 20_000
    logits = random(4, 1, 12).expand(draws, -1).contiguous()
    rules = make_rules(draws, seed=5)
    counts = np.bincount(kernels.sample(logits, rules)[0], minlength=12)
    expected = torch.softmax(logits[0].double(), dim=0).numpy() * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 31.3  # chi-square, 11 degrees: one in a thousand


@pytest.fixture(params=(*NATIVE, "torch"))
def masking(request: pytest.FixtureRequest) -> Kernels:
    return BACK_ENDS[request.param]()


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000, 20_011])
@pytest.mark.parametrize("words_beside", [-1, 0, 2])
def test_a_mask_bars_what_it_leaves_out(masking: Kernels, vocab: int, words_beside: int) -> None:
    words = max(1, (vocab + 31) // 32 + words_beside)
    chance = np.random.default_rng(vocab)
    masks = chance.integers(0, 2**32, (3, words), dtype=np.uint32)
    masks[0, ::2], masks[2, ::3] = 0, 2**32 - 1
    logits, rows = random(5, 6, vocab), np.array([4, 0, 3], dtype=np.int64)
    masking.mask_logits(masked := logits.clone(), rows, masks)
    may_come = np.zeros((6, vocab), dtype=bool)
    may_come[[1, 2, 5]] = True
    for row, mask in zip(rows, masks, strict=True):
        for token in range(min(vocab, 32 * words)):
            may_come[row, token] = mask[token // 32] >> np.uint32(token % 32) & 1
    expected = torch.where(torch.from_numpy(may_come), logits, -math.inf)
    assert torch.equal(masked, expected)
    mask_logits(specified := logits.clone(), rows, masks)
    assert torch.equal(specified, expected)
