"""Keys of the beginnings of prompts, and the replicas that have computed them."""

from dataclasses import replace

import pytest

from manylora.cluster.prefixes import SIZES, PrefixMemory, prefix_keys
from manylora.cluster.ranking import rank
from manylora.cluster.views import Want
from tests.cluster.fleets import RULES, beat, replica, view_of, want

PROMPT = tuple(range(1000))


def wanting(prompt: tuple[int, ...], adapter: str = "a", salt: str = "t") -> Want:
    tokens = float(len(prompt))
    return replace(want(None, tokens=tokens), prompt_tokens=tokens, prefixes=prefix_keys(adapter, salt, prompt))


def test_equal_beginnings_have_equal_keys() -> None:
    keys = prefix_keys("a", "t", PROMPT)
    assert len(keys) == len([size for size in SIZES if size <= 1000])
    assert prefix_keys("a", "t", (*PROMPT, 7)) == keys
    other = prefix_keys("a", "t", (*PROMPT[:100], 0, *PROMPT[101:]))
    assert [a == b for a, b in zip(keys, other, strict=True)] == [size <= 100 for size in SIZES[: len(keys)]]


@pytest.mark.parametrize("other", [("b", "t"), ("a", "u"), ("a\0t", "")])
def test_another_adapter_or_salt_has_no_key_in_common(other: tuple[str, str]) -> None:
    assert not {*prefix_keys("a", "t", PROMPT)} & {*prefix_keys(*other, PROMPT)}


def test_the_replica_that_computed_the_beginning_comes_first_until_its_queue_is_longer_than_the_gain() -> None:
    view = view_of(beat(0), beat(1), beat(2))
    first = wanting(PROMPT)
    assert rank(first, view, RULES)[0] == replica(0)  # a tie, which the slot decides
    PrefixMemory(view).note(replica(1), first)
    longer = wanting((*PROMPT, *range(500)))
    assert rank(longer, view, RULES)[0] == replica(1)
    assert rank(wanting(PROMPT, salt="other"), view, RULES)[0] == replica(0)
    view.route(replica(1), 2000.0)
    assert rank(longer, view, RULES)[0] == replica(0)


def test_the_oldest_prefixes_are_forgotten_and_a_closed_replica_has_none() -> None:
    view = view_of(beat(0), beat(1))
    memory = PrefixMemory(view, most=2 * len(SIZES))
    for number in range(10):
        memory.note(replica(number % 2), wanting((number, *PROMPT)))
    assert sum(len(spots) for spots in view.prefixes.values()) <= 2 * len(SIZES)
    view.close(replica(1))
    assert {slot for spots in view.prefixes.values() for slot in spots.arrays()[0].tolist()} == {0}
