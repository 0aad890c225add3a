"""The ingest process: light, killed without loss, and gone with its parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.jobs import Found, Ingested, IngestFailure, IngestJob, IngestSettings
from manylora.adapters.packing.image import read_image
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.image_folder import job_file
from manylora.clock import SystemClock
from manylora.config.environment import child_environment
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterCorrupt, AdapterSourceUnavailable
from manylora.ids import Digest
from manylora.wiring.adapter_store import open_store
from tests.adapters.adapter_files import TINY, local, save_adapter
from tests.adapters.server_store import opened
from tests.support.waiting import wait_for


@pytest.fixture
def settings(tmp_path: Path) -> IngestSettings:
    (tmp_path / "disk").mkdir()
    return IngestSettings(
        shape=TINY,
        roots=(str(tmp_path / "root"),),
        folder=str(tmp_path / "disk"),
        dtype="bfloat16",
        max_rank=64,
        max_bytes=1 << 24,
        parallel_loads=3,
    )


@pytest.fixture
def ingest(settings: IngestSettings) -> Iterator[ProcessIngest]:
    process = ProcessIngest(settings)
    yield process
    process.close()


def job(number: int, root: Path, name: str) -> IngestJob:
    """A load, and the file that the disk tier would have made for its image."""
    (root.parent / "disk" / job_file(number)).touch()
    return IngestJob(number, local(name), LocalSource((root,)).locate(local(name)).stamp, f"name{number}")


def ended(ingest: ProcessIngest, count: int) -> dict[int, Ingested | IngestFailure]:
    outcomes: dict[int, Ingested | IngestFailure] = {}

    def are_all_here() -> bool:
        outcomes.update({outcome.number: outcome for outcome in ingest.poll() if not isinstance(outcome, Found)})
        return len(outcomes) >= count

    wait_for(are_all_here)
    return outcomes


def test_it_imports_no_torch() -> None:
    code = "import sys, manylora.adapters.ingest.process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=child_environment(), check=False).returncode == 0


def test_jobs_end_with_an_image_or_an_error(ingest: ProcessIngest, tmp_path: Path) -> None:
    for number in range(6):
        save_adapter(tmp_path / "root" / f"a{number}", seed=number, lora_alpha=-1 if number == 3 else 4)
        ingest.submit(job(number, tmp_path / "root", f"a{number}"))
    outcomes = ended(ingest, 6)
    failed = outcomes.pop(3)
    assert isinstance(failed, IngestFailure)
    assert isinstance(failed.error, AdapterCorrupt)
    assert failed.error.message.startswith("Adapter 'a3' cannot be read: ")
    for outcome in outcomes.values():
        assert isinstance(outcome, Ingested)
        assert list(outcome.stage_ms) == ["fetch", "wait", "check", "pack", "write"]
        image = read_image(tmp_path / "disk" / job_file(outcome.number))
        assert image.facts == outcome.facts


def test_an_adapter_that_names_another_base_is_packed_with_a_warning(ingest: ProcessIngest, tmp_path: Path) -> None:
    for number, base in enumerate(("org/other-7b", "org/Tiny", "")):
        save_adapter(tmp_path / "root" / f"a{number}", seed=number, base_model_name_or_path=base)
        ingest.submit(job(number, tmp_path / "root", f"a{number}"))
    warnings = {n: o.warnings for n, o in ended(ingest, 3).items() if isinstance(o, Ingested)}
    said = "it was trained on other-7b, by its own words, and is served on tiny"
    assert warnings == {0: (said,), 1: (), 2: ()}


def test_a_killed_process_fails_what_was_under_way_and_is_started_again(ingest: ProcessIngest, tmp_path: Path) -> None:
    save_adapter(tmp_path / "root" / "a")
    os.kill(ingest.pid, signal.SIGSTOP)  # so that the job is surely under way
    ingest.submit(job(1, tmp_path / "root", "a"))
    os.kill(ingest.pid, signal.SIGKILL)
    failed = ended(ingest, 1)[1]
    assert isinstance(failed, IngestFailure)
    assert isinstance(failed.error, AdapterSourceUnavailable)
    assert failed.error.is_retryable
    assert ingest.restarts == 1
    ingest.submit(job(2, tmp_path / "root", "a"))
    assert isinstance(ended(ingest, 1)[2], Ingested)
    assert ingest.restarts == 1


def test_a_process_that_died_with_nothing_to_do_fails_nobody(ingest: ProcessIngest, tmp_path: Path) -> None:
    first = ingest.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: _has_ended(first))
    assert not ingest.poll()
    save_adapter(tmp_path / "root" / "a")
    ingest.submit(job(1, tmp_path / "root", "a"))
    assert isinstance(ended(ingest, 1)[1], Ingested)
    assert (ingest.restarts, ingest.pid != first) == (1, True)


def _has_ended(pid: int) -> bool:
    """Whether a child of ours is a zombie: ended, and nobody has asked how."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_job_that_is_given_up_hinders_no_other(ingest: ProcessIngest, tmp_path: Path) -> None:
    for name in ("stuck", "beside", "after"):
        save_adapter(tmp_path / "root" / name)
    os.kill(ingest.pid, signal.SIGSTOP)
    ingest.submit(job(1, tmp_path / "root", "stuck"))
    ingest.submit(job(2, tmp_path / "root", "beside"))
    first = ingest.pid
    ingest.abandon(1)
    ingest.submit(job(3, tmp_path / "root", "after"))
    assert ingest.pid != first
    assert set(ended(ingest, 1)) == {3}
    assert ingest.num_processes == 2  # for the sake of the job beside the stuck one
    os.kill(first, signal.SIGCONT)
    assert set(ended(ingest, 1)) == {2}
    wait_for(lambda: not ingest.poll() and ingest.num_processes == 1)
    assert ingest.pid != first


def test_a_stuck_process_is_killed_without_waiting_for_its_end(
    ingest: ProcessIngest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path / "root" / "stuck")
    os.kill(ingest.pid, signal.SIGSTOP)
    ingest.submit(job(1, tmp_path / "root", "stuck"))
    first = ingest.pid
    ingest.abandon(1)
    with monkeypatch.context() as patch:
        # A process in a read of a file system that hangs ends when that comes back, killed or not.
        patch.setattr(subprocess.Popen, "wait", lambda *_: pytest.fail("the engine's thread waits"))
        ingest.poll()
        assert ingest.pid != first
    wait_for(lambda: not ingest.poll() and not Path(f"/proc/{first}").exists())


def test_it_ends_with_its_parent(settings: IngestSettings) -> None:
    code = (
        "import json, os, sys; from manylora.adapters.jobs import IngestSettings; "
        "from manylora.adapters.ingest.client import ProcessIngest; "
        "ingest = ProcessIngest(IngestSettings.from_json(json.loads(sys.argv[1]))); "
        "print(ingest.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    arguments = [sys.executable, "-c", code, json.dumps(settings.to_json())]
    parent = subprocess.run(arguments, env=child_environment(), stdout=subprocess.PIPE, check=False)
    pid = int(parent.stdout)

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_for(is_gone)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    config = AdaptersConfig(roots=(str(tmp_path / "root"),), bank_bytes=1 << 20, disk_bytes=1 << 22)
    made = open_store(config=config, shape=TINY, dtype="bfloat16", folder=tmp_path / "tier", clock=SystemClock())
    yield made
    made.close()


def test_the_store_of_a_server_places_adapters(store: Store, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(8)]
    for number, name in enumerate(names):
        save_adapter(tmp_path / "root" / name, seed=number, rank=[1, 2, 4, 8][number % 4])

    def are_all_placed() -> bool:
        states = [store.want(local(name)) for name in names]
        store.poll()
        return all(state is AdapterState.ON_DEVICE for state in states)

    wait_for(are_all_placed)
    assert store.stats().on_device == store.stats().on_disk == 8


def test_a_load_whose_process_is_killed_can_be_asked_for_again(store: Store, tmp_path: Path) -> None:
    save_adapter(tmp_path / "root" / "a")
    ingest = store._ingest
    assert isinstance(ingest, ProcessIngest)
    os.kill(ingest.pid, signal.SIGSTOP)
    store.want(local("a"))
    store.poll()
    assert store.want(local("a")) is AdapterState.FETCHING
    os.kill(ingest.pid, signal.SIGKILL)

    def has_failed() -> bool:
        store.want(local("a"))
        store.poll()
        return isinstance(store.failure(local("a")), AdapterSourceUnavailable)

    wait_for(has_failed)
    assert store.stats().disk_bytes_used == 0
    store._config = replace(store._config, negative_cache_s=0.0)
    save_adapter(tmp_path / "root" / "a", seed=1)

    def is_placed() -> bool:
        store.poll()
        return store.want(local("a")) is AdapterState.ON_DEVICE

    wait_for(is_placed)


def test_an_operator_s_actions_with_the_real_loaders(tmp_path: Path) -> None:
    """Preloaded, verified and deleted while only `poll` is called, as by an idle engine."""
    save_adapter(tmp_path / "root" / "a")
    with opened(tmp_path) as store:
        folder = store._disk.folder

        def is_at_rest() -> bool:
            store.poll()
            return not store.is_busy

        store.manage(AdapterAction.PRELOAD, local("a"))
        wait_for(is_at_rest)
        info = store.info(local("a"))
        assert info.state is AdapterState.ON_DEVICE
        assert info.stage_ms.keys() == {"fetch", "wait", "check", "pack", "write", "read"}
        store.manage(AdapterAction.VERIFY, local("a"))
        wait_for(is_at_rest)
        assert store.info(local("a")).is_verified is True
        (tmp_path / "link").hardlink_to(store._disk.path(Digest(info.digest)))
        assert store.manage(AdapterAction.DELETE, local("a")).is_deleted
        wait_for(is_at_rest)
        written = (tmp_path / "link").read_bytes()
        assert written == bytes(len(written))
        assert [path.name for path in folder.iterdir()] == ["lock"]
        stats = store.stats()
        assert (stats.bank_bytes_used, stats.disk_bytes_used) == (0, 0)
