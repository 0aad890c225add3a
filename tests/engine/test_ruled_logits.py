"""Rules applied to logits on a device: the bits of the rows as the rules change them on the host."""

import numpy as np
import pytest
import torch

from manylora.engine.logits_rules import (
    AllowedTokens,
    BadWords,
    LogitBias,
    LogitsRule,
    LogitsRules,
    MinNewTokens,
    Penalties,
)
from manylora.engine.request import SamplingParams
from manylora.engine.ruled_logits import apply_rules, apply_where_read
from tests.kernels.cases import random

PROMPT = (3, 7, 7, 11)
VOCAB = 40


def rule_sets() -> dict[str, list[LogitsRule]]:
    strong = SamplingParams(repetition_penalty=1.7, frequency_penalty=0.4, presence_penalty=-0.3)
    words = [(5,), (11, 12), (8, 11, 13), (7, 11, 14), (11, 99)]
    sets: dict[str, list[LogitsRule]] = {
        "penalties": [Penalties(strong, PROMPT)],
        "no token seen": [Penalties(SamplingParams(presence_penalty=1.0), PROMPT)],
        "bias": [LogitBias([(4, 2.5), (9, -100.0), (60, 1.0)])],
        "ends": [MinNewTokens(2, [0, 2, 77])],
        "no more ends": [MinNewTokens(0, [0, 2])],
        "bad words": [BadWords(words, PROMPT)],
        "allowed": [AllowedTokens([1, 7, 39, 50])],
    }
    sets["all"] = [rule for rules in sets.values() for rule in rules]
    return sets


@pytest.mark.parametrize("drawn", [(), (7, 30, 11)])
def test_a_device_s_rows_after_their_rules_have_the_bits_of_the_host_s(drawn: tuple[int, ...]) -> None:
    logits = random(1, 10, VOCAB, scale=4.0)
    before, rules = logits.clone(), [LogitsRules(own) for own in rule_sets().values()]
    for own in rules:
        for token_id in drawn:
            own.advance(token_id)
    rows = list(range(1, 1 + len(rules)))
    found = apply_where_read(logits, rows, rules)
    expected = torch.from_numpy(
        np.stack([own.apply(before.numpy()[row]) for row, own in zip(rows, rules, strict=True)])
    )
    assert torch.equal(found, expected)
    assert torch.equal(found, apply_rules(logits, rows, rules))
    assert torch.equal(logits, before)
    assert [torch.equal(changed, logits[row]) for row, changed in zip(rows, found, strict=True)].count(True) == 2


def test_rules_read_few_logits() -> None:
    reads = {name: LogitsRules(rules).reads(VOCAB).tolist() for name, rules in rule_sets().items()}
    assert reads["penalties"] == [3, 7, 11]
    assert reads["bias"] == [4, 9]
    assert reads["ends"] == [0, 2]
    assert reads["no more ends"] == []
    assert reads["bad words"] == [5, 12, 14]
    assert reads["allowed"] == [1, 7, 39]
