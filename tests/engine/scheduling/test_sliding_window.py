"""With a sliding window a sequence keeps the blocks that its next rows read, and gives the others back as it runs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.engine.scheduling.blocks import BlockPool, PrefixKey, next_key, prefix_root
from manylora.engine.scheduling.retention import Retention
from tests.engine.simulation.model import VOCAB, alone
from tests.engine.simulation.world import World
from tests.engine.test_laws import RequestState, loads, play

WINDOW, BLOCK, ROWS = 10, 4, 8
MOST = 6  # blocks of 10 + 8 positions, and one more, since a window may begin at a block's last slot


def sliding(**world: Any) -> World:
    sizes = {"sliding_window": WINDOW, "block_size": BLOCK, "max_rows": ROWS, "num_blocks": MOST, **world}
    return World(**sizes)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [(seed + 7 * position * position) % VOCAB for position in range(length)]


@pytest.mark.parametrize("guess_tokens", [0, 4])
@pytest.mark.parametrize(("length", "budget"), [(1, 300), (300, 1), (150, 150), (WINDOW, WINDOW)])
def test_a_sequence_of_any_length_runs_in_a_window_a_chunk_and_a_block(
    length: int, budget: int, guess_tokens: int
) -> None:
    world = sliding(guess_tokens=guess_tokens)
    request = world.submit(prompt_of(length), budget=budget)
    world.run()
    assert world.tokens[request] == alone(prompt_of(length), "", budget)
    assert world.engine.stats().preemptions == 0


def test_a_sequence_too_long_for_the_blocks_is_refused_where_no_block_is_given_back() -> None:
    for world in (sliding(sliding_window=None), sliding(num_blocks=MOST - 1)):
        request = world.submit(prompt_of(100), budget=1)
        world.run()
        end = world.finished[request]
        assert (end.reason, end.failure is not None) == (FinishReason.REJECTED, True)
        assert end.failure is not None
        assert f"must be <= {world.pool.num_blocks * BLOCK}" in end.failure.message


def test_the_blocks_in_use_follow_the_window() -> None:
    world = sliding(num_blocks=40)
    world.submit(prompt_of(100), budget=60)
    used = []
    while world.engine.has_work:
        world.step()
        used.append(world.engine.stats().kv_blocks_used)
    assert max(used) == MOST
    assert set(used[20:-1]) <= {3, 4}, "a window of 10 positions lies in 3 or 4 blocks of 4"
    assert used[-1] == 0


def test_short_requests_run_in_the_blocks_that_a_long_one_gave_back() -> None:
    world = sliding(num_blocks=MOST + 3)
    long = world.submit(prompt_of(200), budget=100)
    short = [world.submit(prompt_of(8, seed), budget=4) for seed in range(1, 20)]
    world.run()
    assert list(world.finished)[-1] == long, "they did not wait for its end"
    assert world.tokens[long] == alone(prompt_of(200), "", 100)
    for seed, request in enumerate(short, start=1):
        assert world.tokens[request] == alone(prompt_of(8, seed), "", 4)


def test_a_prompt_goes_on_from_its_last_window_when_its_beginning_is_gone() -> None:
    world = sliding(num_blocks=16)
    first = world.submit(prompt_of(62), budget=1)
    world.run()
    world.submit(prompt_of(40, seed=5), budget=1)  # takes the blocks that were given back first
    world.run()
    again = world.submit(prompt_of(62), budget=9)
    world.step()
    sequence = world.scheduler.running[again]
    assert sequence.released > 0, "the beginning was not there"
    world.run()
    assert world.finished[again].counts.cached_tokens == 60
    assert world.tokens[again] == alone(prompt_of(62), "", 9)
    assert world.tokens[again][0] == world.tokens[first][0]


def test_a_prompt_s_beginning_is_found_while_the_long_one_still_runs() -> None:
    world = sliding(num_blocks=60)
    world.submit(prompt_of(100), budget=50)
    for _ in range(14):
        world.step()
    shared = world.submit(prompt_of(22), budget=1)
    world.run()
    assert world.finished[shared].counts.cached_tokens == 20


@given(loads, st.integers(1, 24))
def test_preemption_behind_a_window_changes_no_token(load: list[RequestState], window: int) -> None:
    worlds = [
        World(num_blocks=blocks, max_running=6, max_rows=12, guess_tokens=4, sliding_window=seen)
        for blocks, seen in ((18, window), (12, window), (400, None))
    ]
    for world in worlds:
        play(world, [RequestState(**{**vars(one), "abort_at": None}) for one in load if one.adapter != "broken"])
    assert worlds[0].tokens == worlds[2].tokens
    for request, tokens in worlds[1].tokens.items():
        assert tokens == worlds[2].tokens[request], "some were refused here, the others are equal"


@given(st.lists(st.booleans(), max_size=24), st.none() | st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_a_match_is_the_longest_from_which_a_sequence_can_go_on(
    is_cached: list[bool], window: int | None, block_size: int, max_rows: int
) -> None:
    pool = BlockPool(32, block_size)
    retention = Retention(block_size=block_size, max_rows=max_rows, window=window)
    keys = chain(len(is_cached))
    blocks = pool.allocate(len(keys)) or []
    for block, key, cached in zip(blocks, keys, is_cached, strict=True):
        if cached:
            pool.publish(block, key)

    def seen_from(stop: int) -> int:
        """The first block with a position that the row at `stop * block_size` sees; the last block at most."""
        row = stop * block_size
        seen = [at for at in range(row) if window is None or at > row - window]
        return min([stop - 1, *(at // block_size for at in seen)])

    usable = [stop for stop in range(1, len(keys) + 1) if all(is_cached[seen_from(stop) : stop])]
    first, found = pool.match(keys.__getitem__, len(keys), retention)
    assert first + len(found) == max(usable, default=0)
    assert found == blocks[first : first + len(found)]
    if found:
        assert first == seen_from(first + len(found))


def chain(length: int) -> list[PrefixKey]:
    keys, parent = list[PrefixKey](), prefix_root("", "")
    for number in range(length):
        parent = next_key(parent, np.array([number]))
        keys.append(parent)
    return keys
