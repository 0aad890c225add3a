"""Engine, scheduler and the real adapter store together: who waits, who pays, and that everybody gets there.

`a0` and `a5` take 640 bytes each (tests/adapters/fake_source.py), so a bank of 700 has room for one of them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.config.groups.adapters import AdaptersConfig
from manylora.engine.events import FinishReason
from manylora.engine.scheduling.fairness import LOAD_BYTES_PER_TOKEN
from manylora.engine.scheduling.scheduler import PATIENCE_STEPS
from manylora.ids import Flow
from tests.adapters.fake_source import body_bytes, facts_of
from tests.engine.real_store import STEP_S, StoredWorld

OneAdapter = Callable[..., StoredWorld]


@pytest.fixture(params=[0, 1400], ids=["one-memory", "two-memories"])
def one_place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OneAdapter]:
    """Makes a world whose bank holds one adapter; host memory holds two, where it is a tier of its own."""
    made: list[StoredWorld] = []

    def make(**world: Any) -> StoredWorld:
        made.append(StoredWorld(tmp_path, bank_bytes=700, host_bytes=request.param, **world))
        return made[0]

    yield make
    made[0].close()


def test_a_newcomer_is_not_starved_while_the_bank_is_pinned_by_others(one_place: OneAdapter) -> None:
    world = one_place(num_blocks=256, max_running=4)
    world.submit([1], adapter="a0", budget=50)
    for _ in range(5):
        world.step()
    newcomer = world.submit([1], adapter="a5", flow="quiet")
    for _ in range(PATIENCE_STEPS + 120):
        world.submit([1], adapter="a0", flow="loud", budget=50)  # its last pin never goes by itself
        world.step()
    assert world.finished[newcomer].reason is FinishReason.LENGTH


def test_a_slow_read_makes_nobody_wait(tmp_path: Path) -> None:
    """It waited for room, and then waits for its bytes: others are pinned meanwhile, however long that takes."""
    world = StoredWorld(tmp_path, bank_bytes=2000, num_blocks=1024, max_running=4)  # room for a0 (640) and a1 (1280)
    keeper = world.submit([1], adapter="a1", budget=3000)
    holder = world.submit([1], adapter="a0", budget=30)
    for _ in range(5):
        world.step()
    world.read_s = 3 * PATIENCE_STEPS * STEP_S
    slow = world.submit([1], adapter="a5", budget=4)
    while holder not in world.finished:
        world.step()
    late = 0
    while slow not in world.finished:
        beside = world.submit([1, 2], adapter="a1", flow="other", budget=1)
        for _ in range(3):
            world.step()
        late += beside not in world.finished
    assert keeper not in world.finished
    assert late == 0
    world.close()


@pytest.mark.parametrize("read_s", [0.0, 0.1, 0.6, 3.0])
def test_two_adapters_take_turns_in_the_one_place_however_slow_a_read_is(one_place: OneAdapter, read_s: float) -> None:
    world = one_place(num_blocks=256, read_s=read_s)
    both = [world.submit([1, 2], adapter=name) for name in ("a0", "a5")]
    world.run()
    assert all(world.finished[request].reason is FinishReason.LENGTH for request in both)
    assert world.num_reads == 2


def test_a_wait_of_minutes_for_a_full_bank_is_no_error(one_place: OneAdapter) -> None:
    world = one_place(num_blocks=128)
    world.submit([1], adapter="a0", budget=400)
    waiting = world.submit([1], adapter="a5")
    for _ in range(390):
        world.step()
        world.clock.advance(9 * STEP_S)  # slow steps: longer than a load may take
    world.run()
    assert world.finished[waiting].reason is FinishReason.LENGTH
    queue_ms = world.finished[waiting].queue_ms
    assert queue_ms is not None
    assert queue_ms > 3800 * 1e3 * STEP_S > 1e3 * AdaptersConfig().load_timeout_s


def test_a_request_after_an_idle_time_does_not_inherit_an_old_wait(one_place: OneAdapter) -> None:
    world = one_place(read_s=1.0)
    world.abort(world.submit([1], adapter="a0"))
    world.run()
    leaver = world.submit([1], adapter="a0")
    world.step()
    world.abort(leaver)
    world.run()
    world.clock.advance(300.0)
    again = world.submit([1], adapter="a0")
    world.run()
    assert world.finished[again].reason is FinishReason.LENGTH


def test_a_load_is_paid_for_once_when_it_begins_and_by_who_hangs_up_too(one_place: OneAdapter) -> None:
    world = one_place(read_s=0.5)
    charged: list[tuple[Flow, int]] = []
    charge = world.scheduler.counter().charge

    def note(flow: Flow, *, load_bytes: int = 0, **more: int) -> None:
        if load_bytes:
            charged.append((flow, load_bytes))
        charge(flow, load_bytes=load_bytes, **more)

    world.scheduler.counter().charge = note  # type: ignore[method-assign]  # a look at what passes
    leaver = world.submit([1], adapter="a0", flow="leaver")
    others = [world.submit([1], adapter="a0", flow="other") for _ in range(5)]
    while not world.reader.reads:
        world.step()
    world.abort(leaver)
    world.run()
    assert all(world.finished[request].reason is FinishReason.LENGTH for request in others)
    # The file and then its image; both are as long as each other here.
    assert charged == [(Flow("leaver"), body_bytes("a0"))] * 2
    assert body_bytes("a0") < LOAD_BYTES_PER_TOKEN


def test_waiting_for_memory_makes_no_adapter_more_valuable(one_place: OneAdapter) -> None:
    world = one_place(num_blocks=20)
    world.submit([1], budget=70)
    while not world.tokens:
        world.step()
    waiting = world.submit(range(60), adapter="a0")  # its adapter has room, its keys and values have none
    world.run()
    assert world.finished[waiting].reason is FinishReason.LENGTH
    assert world.adapters._device.uses(facts_of("a0", "0").digest) == 1


def test_an_idle_engine_brings_what_an_operator_asked_for_and_then_is_at_rest(tmp_path: Path) -> None:
    world = StoredWorld(tmp_path, bank_bytes=2000)
    ref = AdapterRef(SourceName.LOCAL, "a0")
    assert not world.engine.tend()
    assert world.engine.manage(AdapterAction.PIN, ref).state is AdapterState.ABSENT
    turns = 0
    while world.engine.tend():
        world.turn_loaders()
        turns += 1
    assert turns == 2  # a load and a read
    info = world.engine.info(ref)
    assert (info.state, info.is_pinned, info.num_bytes) == (AdapterState.ON_DEVICE, True, body_bytes("a0"))
    assert world.engine.infos() == (info,)
    assert not world.engine.has_work
    world.close()


def test_what_runs_with_a_deleted_adapter_goes_on_and_what_comes_is_refused(tmp_path: Path) -> None:
    world = StoredWorld(tmp_path, bank_bytes=2000, num_blocks=256)
    ref = AdapterRef(SourceName.LOCAL, "a0")
    running = world.submit([1], adapter="a0", budget=40)
    while not world.tokens.get(running):
        world.step()
    waiting = world.submit(range(90), adapter="a0", flow="other")
    assert world.engine.manage(AdapterAction.DELETE, ref).is_deleted
    late = world.submit([1], adapter="a0")
    for _ in range(3):
        world.step()
    assert world.engine.info(ref).pins >= 1
    world.run()
    assert world.finished[running].reason is FinishReason.LENGTH
    assert world.finished[late].reason is FinishReason.ADAPTER_FAILURE
    failure = world.finished[late].failure
    assert failure is not None
    assert failure.error == "AdapterNotFound"
    assert world.finished[waiting].reason in (FinishReason.LENGTH, FinishReason.ADAPTER_FAILURE)
    while world.engine.tend():
        pass
    assert world.engine.infos() == ()
    assert world.adapters.stats().bank_bytes_used == 0
    world.close()
