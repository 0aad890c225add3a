"""Draws on the device give the tokens and the highest logits of the specification."""

import numpy as np
import torch

from manylora.kernels.cuda.sampling import sample_on_device
from manylora.kernels.sampling import sample_tokens
from tests.kernels.cases import random
from tests.kernels.test_sampling import make_rules


def test_greedy_and_drawn_rows_have_the_tokens_of_the_specification() -> None:
    logits = random(1, 9, 331, scale=3.0)
    logits[1, [7, 40, 300]] = 50.0  # equal ones: the first
    logits[2] = -torch.inf
    logits[3, 11] = torch.nan
    logits[4, 12] = torch.inf
    rules = make_rules(9, top_p=0.9)
    rules["temperature"] = [0, 0, 0, 0, 1.0, 1.0, 0, 0.7, 0]
    tokens, peaks = sample_on_device(logits, rules)
    expected, highest = sample_tokens(logits, rules)
    assert tokens == expected
    assert tokens[1] == 7
    assert np.array_equal(peaks, highest, equal_nan=True)


def test_a_step_without_rows_draws_nothing() -> None:
    assert sample_on_device(torch.empty(0, 9), make_rules(0)) == ([], [])
