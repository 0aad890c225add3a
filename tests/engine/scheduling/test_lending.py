"""Idle KV memory holds adapters, and comes back the moment a sequence needs it.

A KV block is 640 bytes here, as much as `a0` and `a5` take each (`tests/adapters/fake_source.py`); the bank has room
for one of them, and a context of 32 positions takes 8 blocks.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.engine.scheduling.blocks import BlockPool, next_key, prefix_root
from tests.adapters.fake_source import body_bytes, facts_of
from tests.engine.real_store import StoredWorld

BLOCK_BYTES = 640
SMALL = ("a0", "a5")
Make = Callable[..., StoredWorld]


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Make]:
    """Makes a world whose bank holds one small adapter and may borrow all but one context of the KV cache."""
    made: list[StoredWorld] = []

    def make(num_blocks: int = 12, **world: Any) -> StoredWorld:
        folder = tmp_path / str(len(made))
        settings = {"bank_bytes": 700, "num_blocks": num_blocks, "block_size": 4, "max_model_len": 32, **world}
        made.append(StoredWorld(folder, lent_block_bytes=BLOCK_BYTES, **settings))
        return made[-1]

    yield make
    for world in made:
        world.close()


def is_placed(world: StoredWorld, name: str) -> bool:
    return facts_of(name, "0").digest in world.bank


def test_the_sizes_are_what_the_tests_say() -> None:
    assert {body_bytes(name) for name in SMALL} == {BLOCK_BYTES}


def run_all(world: StoredWorld, *names: str) -> None:
    for name in names:
        request = world.submit([1, 2], adapter=name, budget=2)
        world.run()
        assert world.finished[request].reason is FinishReason.LENGTH


def test_idle_kv_memory_holds_more_adapters_than_the_bank_has_room_for(sharing: Make) -> None:
    world = sharing()
    run_all(world, *SMALL)
    assert all(is_placed(world, name) for name in SMALL)
    assert world.pool.num_lent == 1
    assert world.bank.total_bytes == 700 + BLOCK_BYTES
    assert world.engine.stats().kv_blocks_lent == 1
    world.engine.check()


def test_without_idle_kv_memory_the_bank_keeps_to_its_own(sharing: Make) -> None:
    world = sharing(num_blocks=8)  # no more than the one context that is never lent
    run_all(world, *SMALL)
    assert [is_placed(world, name) for name in SMALL] == [False, True]
    assert world.pool.num_lent == 0


def test_a_sequence_that_needs_blocks_has_idle_adapters_evicted_at_once(sharing: Make) -> None:
    world = sharing()
    run_all(world, *SMALL)
    assert world.pool.num_lent == 1
    readers = [world.submit([7] * 21, budget=4) for _ in range(2)]  # six blocks each: all there are
    world.step()
    assert len(world.scheduler.running) == 2, "neither waits"
    assert world.pool.num_lent == 0
    assert world.bank.total_bytes == 700
    assert sum(is_placed(world, name) for name in SMALL) == 1
    world.run()
    assert all(world.finished[reader].reason is FinishReason.LENGTH for reader in readers)


def test_a_sequence_that_grows_has_idle_adapters_evicted_before_anyone_is_preempted(sharing: Make) -> None:
    world = sharing()
    run_all(world, *SMALL)
    readers = [world.submit([7] * 18, budget=6) for _ in range(2)]  # five blocks each at first, then six
    world.run()
    assert all(world.finished[reader].reason is FinishReason.LENGTH for reader in readers)
    assert world.engine.stats().preemptions == 0
    assert world.pool.num_lent == 0


def test_what_is_in_use_stays_where_it_is(sharing: Make) -> None:
    world = sharing(max_running=4)
    users = [world.submit([1, 2], adapter=name, budget=20) for name in SMALL]
    while len(world.scheduler.running) < 2:
        world.step()
    assert world.pool.num_lent == 1
    reader = world.submit([7] * 28, budget=4)  # eight blocks
    world.run()
    assert all(is_placed(world, name) for name in SMALL) or world.pool.num_lent == 0
    assert all(world.finished[request].reason is FinishReason.LENGTH for request in (*users, reader))


def test_cached_prompts_are_forgotten_only_when_no_idle_adapter_can_go(sharing: Make) -> None:
    world = sharing()
    run_all(world, "a0")
    for length in (28, 20):  # the second one's blocks are the last ones, and are given away last
        world.submit([length] * length, budget=1)
        world.run()
    assert world.pool.num_cached == 12
    run_all(world, "a5")
    assert not is_placed(world, "a0"), "an idle adapter went first"
    assert world.pool.num_lent == 0
    holder = world.submit([1], adapter="a5", budget=20)
    world.step()
    other = world.submit([1], adapter="a0", budget=4)
    world.run()
    assert world.finished[holder].reason is world.finished[other].reason is FinishReason.LENGTH
    assert world.pool.num_lent == 1, "with the bank pinned, what was only cached made way"


Wish = tuple[str | None, int, int]


@pytest.mark.parametrize("host_bytes", [0, 1300], ids=["one-memory", "two-memories"])
@given(
    wishes=st.lists(
        st.tuples(st.sampled_from([None, "a0", "a1", "a5"]), st.integers(1, 20), st.integers(1, 12)), max_size=24
    ),
    num_blocks=st.integers(8, 16),
    sliding_window=st.none() | st.integers(1, 10),
)
@settings(max_examples=60, deadline=None)
def test_adapters_and_blocks_never_wait_for_each_other(
    tmp_path_factory: pytest.TempPathFactory,
    wishes: list[Wish],
    num_blocks: int,
    sliding_window: int | None,
    host_bytes: int,
) -> None:
    """Whatever comes, everyone finishes, budgets hold, and at rest nothing is held."""
    world = StoredWorld(
        tmp_path_factory.mktemp("tier"),
        bank_bytes=1300,
        host_bytes=host_bytes,
        num_blocks=num_blocks,
        block_size=4,
        max_model_len=32,
        max_rows=6,
        sliding_window=sliding_window,
        lent_block_bytes=BLOCK_BYTES,
    )
    kept = world.scheduler.retention.most_blocks(32)
    requests = []
    for number, (name, prompt, budget) in enumerate(wishes):
        requests.append(world.submit([number % 5 + 1] * prompt, adapter=name, budget=budget))
        world.step()
        stats = world.adapters.stats()
        assert stats.bank_bytes_used <= stats.bank_bytes_total == 1300 + world.pool.num_lent * BLOCK_BYTES
        assert world.pool.num_blocks - world.pool.num_lent >= kept, "one context is always left"
        world.pool.check()
    world.run()
    assert all(world.finished[request].reason is FinishReason.LENGTH for request in requests)
    world.engine.check()
    world.close()


@given(st.lists(st.tuples(st.sampled_from(["take", "drop", "lend", "drop and lend", "back"]), st.integers(1, 5))))
def test_lent_blocks_are_conserved(steps: list[tuple[str, int]]) -> None:
    pool, held, key = BlockPool(12, 4), list[list[int]](), prefix_root("", "")
    for what, count in steps:
        if what == "take" and (blocks := pool.allocate(count)) is not None:
            held.append(blocks)
            key = next_key(key, np.arange(4))
            pool.publish(blocks[0], key)
        elif what == "drop" and held:
            pool.release(held.pop(count % len(held)))
        elif what == "back" and count <= pool.num_lent:
            pool.take_back(count)
        elif "lend" in what:
            before = pool.num_lent
            lent = pool.lend(count, drop_cached=what == "drop and lend")
            assert pool.num_lent - before == (0 if lent is None else count)
        pool.check()
        taken = {block for blocks in held for block in blocks}
        assert not taken & set(range(12 - pool.num_lent, 12)), "what is held is not lent"
