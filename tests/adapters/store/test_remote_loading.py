"""From a remote source to the device, with the real ingest process: slow, stuck, truncated and hostile sources."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterState
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.jobs import Found, IngestSettings, LocateJob, Outcome
from manylora.bench.faults.network import Proxy
from tests.adapters.adapter_files import TINY, config_bytes, local, lora_tensors, safetensors_bytes, save_adapter
from tests.adapters.fake_hub import HttpServer, Repository
from tests.adapters.server_store import all_placed, opened, place, turn
from tests.support.waiting import PATIENCE_S, wait_for

FILES = {"adapter_config.json": config_bytes(), "adapter_model.safetensors": safetensors_bytes(lora_tensors())}


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


class GatedServer(HttpServer):
    """Sends no weights before so many were asked for at once."""

    def __init__(self, files: Path, num_at_once: int) -> None:
        self._num_at_once = num_at_once
        self._changed = threading.Condition()
        self._num_waiting = 0
        self.most_at_once = 0
        super().__init__(files)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "GET" and handler.path.endswith(".safetensors"):
            with self._changed:
                self._num_waiting += 1
                self.most_at_once = max(self.most_at_once, self._num_waiting)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.most_at_once >= self._num_at_once, timeout=PATIENCE_S / 2)
                self._num_waiting -= 1
        super().answer(handler)


def test_a_source_is_asked_for_many_adapters_at_once(tmp_path: Path) -> None:
    """One after another the first would wait for ever: a slow source costs about the time of one load, not of all."""
    (tmp_path / "files").mkdir()
    server = GatedServer(tmp_path / "files", num_at_once=24)
    names = [f"a{number}" for number in range(32)]
    push(server, *names)
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{server.port}", parallel_loads=32) as store:
        place(store, *hub(*names))
        assert 24 <= server.most_at_once < 32  # a quarter of the turns stays with other sources
        assert store.stats().loads == 32
    server.close()


def test_a_hundred_requests_at_once_are_one_question_and_one_download(http: HttpServer, tmp_path: Path) -> None:
    push(http, "a")
    with opened(tmp_path, hub_endpoint=f"http://127.0.0.1:{http.port}") as store:
        wait_for(all_placed(store, hub("a") * 100))
        seen = [path for path, _ in http.seen]
        assert sum(path.startswith("/api/models/") for path in seen) == 1
        assert sum(path.endswith(".safetensors") for path in seen) == 1
        assert store.stats().loads == 1


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
