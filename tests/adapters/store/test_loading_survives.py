"""Loads survive their waiters and their sources: both may go at any moment, and nothing is left of that."""

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterHandle, AdapterState
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.store.store import Store
from manylora.bench.faults.network import Proxy
from manylora.bench.faults.object_storage import BUCKET, S3Server, credentials
from manylora.clock import ManualClock
from manylora.engine.events import FinishReason
from tests.adapters.adapter_files import config_bytes, local, lora_tensors, safetensors_bytes, save_adapter
from tests.adapters.fake_hub import HttpServer, Repository
from tests.adapters.fake_source import FakeSource
from tests.adapters.server_store import bytes_in, fail, opened, place, turn
from tests.engine.real_store import StoredWorld
from tests.support.waiting import wait_for

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = {CONFIG: config_bytes(), WEIGHTS: safetensors_bytes(lora_tensors())}
SLOW_BYTES_PER_S = 20_000


def pinned(store: Store, ref: AdapterRef) -> AdapterHandle:
    placed = store.pin(ref)
    assert placed is not None
    return placed


def forget_in_memory(store: Store, ref: AdapterRef) -> None:
    """Let an adapter be on disk only."""
    placed = pinned(store, ref)
    store.unpin(placed)
    store._device.remove(placed.digest)


# ── waiters that go ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(weed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A real S3 server behind a proxy, with adapters `wanted` and `good`."""
    for seed, name in enumerate(("wanted", "good")):
        weed.put(f"{name}/{CONFIG}", FILES[CONFIG])
        weed.put(f"{name}/{WEIGHTS}", safetensors_bytes(lora_tensors(seed=seed)))
    proxy = Proxy(weed.port)
    for variable, value in credentials(proxy.port).items():
        monkeypatch.setenv(variable, value)
    yield proxy
    proxy.close()


@pytest.mark.long
def test_a_load_that_all_its_waiters_have_left_ends_on_disk(bucket: Proxy, tmp_path: Path) -> None:
    wanted, good = (AdapterRef(SourceName.S3, name) for name in ("wanted", "good"))
    with opened(tmp_path, stores=(f"s3://{BUCKET}",)) as store:
        bucket.bytes_per_s = SLOW_BYTES_PER_S
        wait_for(lambda: turn(store, [wanted] * 20) != [] and store.begun() != [])
        store.unwant(wanted)
        bucket.bytes_per_s = 0
        place(store, good)
        wait_for(lambda: turn(store, []) == [] and store.state(wanted) is AdapterState.ON_DISK)
        stats = store.stats()
        assert (stats.on_disk, stats.on_device, stats.failures) == (2, 1, 0)
        assert stats.disk_bytes_used == bytes_in(tmp_path / "tier" / "0")
        place(store, wanted)
        assert store.stats().loads == 2


def test_a_question_that_all_its_waiters_have_left_hinders_nothing(bucket: Proxy, tmp_path: Path) -> None:
    wanted, good = (AdapterRef(SourceName.S3, name) for name in ("wanted", "good"))
    with opened(tmp_path, stores=(f"s3://{BUCKET}",)) as store:
        bucket.is_stuck = True
        turn(store, [wanted] * 20)
        wait_for(lambda: bucket.num_connections > 0)
        store.unwant(wanted)
        turn(store, [])
        bucket.is_stuck = False
        place(store, good)
        stats = store.stats()
        assert (stats.loads, stats.failures) == (1, 0)
        assert stats.disk_bytes_used == bytes_in(tmp_path / "tier" / "0")
        place(store, wanted)


def test_after_a_missing_adapter_whose_waiters_have_left_a_good_one_is_served(bucket: Proxy, tmp_path: Path) -> None:
    """What killed another server's loader: the error of a load finds nobody to tell it to."""
    missing_one, good = (AdapterRef(SourceName.S3, name) for name in ("missing", "good"))
    with opened(tmp_path, stores=(f"s3://{BUCKET}",)) as store:
        turn(store, [missing_one])
        store.unwant(missing_one)
        wait_for(lambda: turn(store, []) == [] and store.state(missing_one) is AdapterState.FAILED)
        place(store, good)
        assert isinstance(fail(store, missing_one), errors.AdapterNotFound)


# ── sources that go ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_local_adapter_deleted_in_use_ends_its_requests_well_and_refuses_new_ones(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "root" / "a")
    with opened(tmp_path) as store:
        place(store, local("a"))
        running = pinned(store, local("a"))
        before = store.weights[running.digest].image.clone()
        shutil.rmtree(folder)
        assert turn(store, [local("a")]) == [AdapterState.FAILED]
        assert isinstance(store.failure(local("a")), errors.AdapterNotFound)
        assert store.pin(local("a")) is None
        assert bool((store.weights[running.digest].image == before).all())
        store.unpin(running)


def test_a_local_adapter_deleted_while_it_is_only_on_disk_is_not_found(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "root" / "a")
    with opened(tmp_path) as store:
        place(store, local("a"))
        forget_in_memory(store, local("a"))
        shutil.rmtree(folder)
        assert turn(store, [local("a")]) == [AdapterState.FAILED]
        assert isinstance(store.failure(local("a")), errors.AdapterNotFound)
    with opened(tmp_path) as store:  # nor after a restart, though its image is still there
        assert store.stats().on_disk == 1
        assert turn(store, [local("a")]) == [AdapterState.FAILED]


def test_a_local_adapter_deleted_while_it_is_loaded_fails_that_load_alone(tmp_path: Path) -> None:
    clock = ManualClock()
    folder = save_adapter(tmp_path / "root" / "a", seed=1)
    save_adapter(tmp_path / "root" / "b", seed=2)
    with opened(tmp_path, clock=clock) as store:
        ingest = store._ingest
        assert isinstance(ingest, ProcessIngest)
        os.kill(ingest.pid, signal.SIGSTOP)
        turn(store, [local("a"), local("b")])
        shutil.rmtree(folder)
        os.kill(ingest.pid, signal.SIGCONT)
        place(store, local("b"))
        assert isinstance(fail(store, local("a")), errors.AdapterNotFound)
        assert store.stats().disk_bytes_used == bytes_in(tmp_path / "tier" / "0")


def test_a_running_request_outlives_its_adapters_source(tmp_path: Path) -> None:
    """Through engine and scheduler: one request is in the middle of its tokens, the next one comes too late."""
    world = StoredWorld(tmp_path, bank_bytes=2_000, num_blocks=256, max_running=4)
    running = world.submit([1, 2], adapter="a0", budget=40)
    while not world.tokens.get(running):
        world.step()
    source = world.adapters._sources[SourceName.LOCAL]
    assert isinstance(source, FakeSource)
    del source.versions["a0"]
    late = world.submit([1, 2], adapter="a0", budget=40)
    world.run()
    assert world.finished[running].reason is FinishReason.LENGTH
    assert len(world.tokens[running]) == 40
    assert world.finished[late].reason is FinishReason.ADAPTER_FAILURE
    failure = world.finished[late].failure
    assert failure is not None
    assert failure.error == "AdapterNotFound"
    world.close()


@pytest.fixture
def hub(http: HttpServer) -> Iterator[Proxy]:
    http.repositories["org/a"] = Repository()
    http.repositories["org/a"].push(FILES)
    proxy = Proxy(http.port)
    yield proxy
    proxy.close()


@pytest.mark.long
def test_while_a_remote_source_is_down_what_was_known_is_served_from_every_tier(
    hub: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "manylora.adapters")
    ref = AdapterRef(SourceName.HUB, "org/a")
    clock = ManualClock()

    def questions_failed() -> int:
        return sum(record.getMessage().startswith("adapter.not_located") for record in caplog.records)

    with opened(tmp_path, clock=clock, hub_endpoint=f"http://127.0.0.1:{hub.port}", revision_ttl_s=100.0) as store:
        place(store, ref)
        hub.is_down = True
        for count in (1, 2, 3):
            clock.advance(101.0)  # so that it is asked again
            forget_in_memory(store, ref)
            place(store, ref)
            wait_for(lambda count=count: turn(store, [ref]) != [] and questions_failed() == count)  # type: ignore[misc]
            store.unpin(pinned(store, ref))
        assert store.failure(ref) is None
        assert store.stats().loads == 1


def test_an_adapter_that_a_remote_source_has_deleted_is_not_found_once_that_is_asked(
    hub: Proxy, http: HttpServer, tmp_path: Path
) -> None:
    ref = AdapterRef(SourceName.HUB, "org/a")
    clock = ManualClock()
    with opened(tmp_path, clock=clock, hub_endpoint=f"http://127.0.0.1:{hub.port}", revision_ttl_s=100.0) as store:
        place(store, ref)
        running = pinned(store, ref)
        del http.repositories["org/a"]
        clock.advance(101.0)
        assert isinstance(fail(store, ref), errors.AdapterNotFound)
        assert store.pin(ref) is None
        assert bool(store.weights[running.digest].image.isfinite().all())
        store.unpin(running)
