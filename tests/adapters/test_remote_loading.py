"""From a remote source to the device, with the real ingest process: slow, stuck, truncated and hostile sources."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterState
from manylora.adapters.jobs import Found, IngestSettings, LocateJob, Outcome
from manylora.adapters.loaders import ProcessIngest
from manylora.bench.network import Proxy
from tests.adapters.making import TINY, config_bytes, local, lora_tensors, safetensors_bytes, save_adapter
from tests.adapters.network import HttpServer, Repository
from tests.adapters.opening import all_placed, opened, turn
from tests.waiting import wait_for

FILES = {"adapter_config.json": config_bytes(), "adapter_model.safetensors": safetensors_bytes(lora_tensors())}


@pytest.fixture
def http(tmp_path: Path) -> Iterator[HttpServer]:
    (tmp_path / "files").mkdir()
    server = HttpServer(tmp_path / "files")
    yield server
    server.close()


@pytest.fixture
def slow(http: HttpServer) -> Iterator[Proxy]:
    proxy = Proxy(http.port)
    yield proxy
    proxy.close()


def hub(*names: str) -> list[AdapterRef]:
    return [AdapterRef(SourceName.HUB, f"org/{name}") for name in names]


def push(http: HttpServer, *names: str) -> None:
    """Repositories whose contents all differ."""
    for seed, name in enumerate(names):
        files = {**FILES, "adapter_model.safetensors": safetensors_bytes(lora_tensors(seed=seed))}
        http.repositories.setdefault(f"org/{name}", Repository()).push(files)


def test_slow_loads_of_different_adapters_take_the_time_of_one(http: HttpServer, slow: Proxy, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(20)]
    push(http, *names)
    slow.delay_s = 0.4
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{slow.port}") as store:
        turn(store, hub("nowhere"))  # the process is up, its libraries are imported
        wait_for(lambda: set(turn(store, hub("nowhere"))) == {AdapterState.FAILED})
        begun_s = time.monotonic()
        wait_for(all_placed(store, hub(*names)))
        # One after another they would take 20 × (0.4 to ask + 0.4 to fetch).
        assert time.monotonic() - begun_s < 20 * 0.8 / 2


def test_a_stuck_source_delays_no_other(http: HttpServer, slow: Proxy, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(8)]
    push(http, *names)
    (http.files / "other").mkdir()
    for name, data in FILES.items():
        (http.files / "other" / name).write_bytes(data)
    save_adapter(tmp_path / "root" / "mine")
    slow.is_stuck = True
    with opened(
        tmp_path,
        hub_endpoint=f"http://127.0.0.1:{slow.port}",
        stores=(f"http://127.0.0.1:{http.port}/files",),
        parallel_loads=8,
    ) as store:
        turn(store, hub(*names))
        others = [local("mine"), AdapterRef(SourceName.HTTPS, "other")]
        wait_for(all_placed(store, others))
        assert set(turn(store, hub(*names))) == {AdapterState.FETCHING}
        slow.is_stuck = False
        wait_for(all_placed(store, hub(*names)))


def test_a_question_that_is_given_up_ends_in_its_process(http: HttpServer, slow: Proxy, tmp_path: Path) -> None:
    push(http, "a")
    (tmp_path / "disk").mkdir()
    settings = IngestSettings(
        shape=TINY,
        folder=str(tmp_path / "disk"),
        dtype="bfloat16",
        max_rank=8,
        max_bytes=1 << 20,
        parallel_loads=1,
        stores=(f"http://127.0.0.1:{slow.port}/files",),
        hub_endpoint=f"http://127.0.0.1:{http.port}",
    )
    slow.is_stuck = True
    ingest = ProcessIngest(settings)
    try:
        ingest.submit(LocateJob(1, AdapterRef(SourceName.HTTPS, "a")))
        wait_for(lambda: slow.num_connections > 0)
        pid = ingest.pid
        ingest.abandon(1)
        ingest.submit(LocateJob(2, *hub("a")))
        outcomes: list[Outcome] = []

        def has_ended() -> bool:
            outcomes.extend(ingest.poll())
            return bool(outcomes)

        wait_for(has_ended)
        [outcome] = outcomes
        assert isinstance(outcome, Found)
        assert (outcome.number, ingest.pid, ingest.num_processes) == (2, pid, 1)
    finally:
        ingest.close()


def test_a_source_that_does_not_answer_ends_as_unavailable(http: HttpServer, slow: Proxy, tmp_path: Path) -> None:
    push(http, "a")
    slow.is_stuck = True
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{slow.port}", load_timeout_s=1.0) as store:
        [ref] = hub("a")
        wait_for(lambda: turn(store, [ref]) == [AdapterState.FAILED])
        failure = store.failure(ref)
        assert isinstance(failure, errors.AdapterSourceUnavailable)
        assert failure.is_retryable
        assert store.stats().disk_bytes_used == 0


def test_the_same_content_from_two_sources_is_one_adapter(http: HttpServer, tmp_path: Path) -> None:
    push(http, "a")
    folder = tmp_path / "root" / "mine"
    folder.mkdir(parents=True)
    [commit] = http.repositories["org/a"].commits.values()
    for name, data in commit.items():
        (folder / name).write_bytes(data)
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{http.port}") as store:
        refs = [*hub("a"), local("mine")]
        wait_for(all_placed(store, refs))
        assert store.stats().on_device == 1


@pytest.mark.parametrize("hostile", [b"", b"\x80\x04pickle", FILES["adapter_model.safetensors"][:-100]])
def test_what_arrives_is_checked_as_if_it_lay_here(http: HttpServer, tmp_path: Path, hostile: bytes) -> None:
    http.repositories["org/a"] = Repository()
    http.repositories["org/a"].push({**FILES, "adapter_model.safetensors": hostile})
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{http.port}") as store:
        [ref] = hub("a")
        wait_for(lambda: turn(store, [ref]) == [AdapterState.FAILED])
        assert isinstance(store.failure(ref), errors.AdapterCorrupt | errors.AdapterUnsafeFormat)
        assert store.stats().disk_bytes_used == 0


def test_a_token_appears_in_no_message(http: HttpServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{http.port}") as store:
        ref = AdapterRef(SourceName.HUB, "org/a", "hf_a_secret_of_mine")
        wait_for(lambda: turn(store, [ref]) == [AdapterState.FAILED])
        failure = store.failure(ref)
        assert isinstance(failure, errors.AdapterNotFound)
        assert "secret" not in f"{failure.message} {ref} {ref!r} {list((tmp_path / 'tier').rglob('*'))}"
    assert "secret" not in "".join(capfd.readouterr())
