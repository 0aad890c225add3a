"""A fleet on a real Ray cluster of this machine, by its commands: answers, affinity, kills, drains and scaling."""

import importlib.util
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from manylora.cluster.steering import PLAN_S
from tests.conftest import missing
from tests.ray_serve.clusters import ADAPTERS, Fleet, flags, kill, make_files, running_fleet, save_adapters
from tests.support.serving import running_server
from tests.support.waiting import PATIENCE_S, is_alive, wait_for

pytestmark = pytest.mark.long
LONG_S = 120.0
"""Seconds for the start of a replica on a busy machine, and for the end of an idle one."""
BUSY_S = 0.2
"""Processor seconds that an engine uses only if it computes a stream; its 3,000 steps take several times as long."""
LATER = ("b0", "b1", "b2", "b3")
ALL_NAMES = (*ADAPTERS, *LATER)
"""More adapters than a plan that evens the loads out moves away from their homes."""
PROMPTS = ("hello world", "the dog", "a longer prompt of some words")


@pytest.fixture(scope="module", autouse=True)
def ray_is_here() -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_is_here: None) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    save_adapters(make_files(folder), folder, LATER, seed=len(ADAPTERS))
    return folder


@pytest.fixture(scope="module", params=["handle", "direct"])
def fleet(folder: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    counts = {f"ray__{name}": 2 for name in ("engines", "least_engines", "most_engines")}
    with running_fleet(folder, folder / request.param, ray__mode=request.param, **counts) as found:
        yield found


def test_a_fleet_answers_as_one_server_does(fleet: Fleet, folder: Path, tmp_path: Path) -> None:
    asked = [(model, prompt) for model in ("base", *ADAPTERS) for prompt in PROMPTS]
    with running_server(tmp_path / "log", *flags(folder, tmp_path)) as url:
        one = Fleet(url, fleet.process, [], tmp_path / "log")
        expected = {pair: one.text(*pair, max_tokens=16) for pair in asked}
    assert {pair: fleet.text(*pair, max_tokens=16) for pair in asked} == expected
    assert len({*expected.values()}) > len(PROMPTS)


def test_each_adapter_stays_with_one_replica_and_the_status_shows_both(fleet: Fleet) -> None:
    """An adapter whose place has moved has a copy at each; further requests make none."""
    wait_for(lambda: sum(each["is_up"] for each in fleet.engines()) == 2)
    before = settled(fleet)
    for _ in range(5):
        for name in ALL_NAMES:
            fleet.text(name)
    assert settled(fleet) == before
    assert len(ALL_NAMES) <= sum(before) < 2 * len(ALL_NAMES)


def cpu_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def settled(fleet: Fleet) -> list[int]:
    """Send requests to each adapter until the numbers on the device stay; return those of each replica."""
    seen: list[int] = []
    since_s = time.monotonic()

    def stay() -> bool:
        nonlocal seen, since_s
        for name in ALL_NAMES:
            fleet.text(name)
        engines = sorted(fleet.engines(), key=lambda each: str(each["replica"]))
        found = [each["tiers"].get("device", 0) for each in engines]
        if found != seen or sum(found) < len(ALL_NAMES):
            seen, since_s = found, time.monotonic()
        return time.monotonic() - since_s > 1.2 * PLAN_S

    wait_for(stay, LONG_S)
    return seen


def test_a_local_cluster_listens_on_loopback_and_elsewhere_only_where_serve_asks_for_the_token(fleet: Fleet) -> None:
    """Serve binds a port of each replica to all addresses, and has no setting for it."""
    elsewhere = set()
    for process in psutil.Process(fleet.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            for each in process.net_connections(kind="tcp"):
                if each.status == psutil.CONN_LISTEN and each.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                    elsewhere.add(process.name())
    assert all(name.startswith("ray::ServeRepli") for name in elsewhere), elsewhere


def test_callers_that_leave_end_the_work_on_the_replicas(fleet: Fleet) -> None:
    """Serve cancels a call before or after its message about the caller: several calls meet both orders."""
    body = {"model": "a0", "prompt": "hello", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    own = set()
    for _ in range(20):
        with httpx2.stream("POST", f"{fleet.url}/v1/completions", json=body, timeout=PATIENCE_S) as reply:
            next(reply.iter_lines())
            own.add(reply.headers["x-request-id"])
    wait_for(lambda: own <= {*fleet.ledger()})
    assert {row["finish_reason"] for row in fleet.rows() if row["request_id"] in own} == {"disconnect"}
    wait_for(lambda: not any(each["in_flight"] for each in fleet.engines()))


@pytest.mark.parametrize("victim", ["engine_pid", "pid"])
def test_after_a_kill_of_an_engine_or_of_its_replica_each_request_ends_once(fleet: Fleet, victim: str) -> None:
    for name in ADAPTERS:
        fleet.text(name)
    engines = {each["engine_pid"]: each for each in fleet.engines()}
    before = {pid: cpu_seconds(pid) for pid in engines}
    streams = [fleet.stream(name, 3000) for name in ADAPTERS]
    # an engine's tiers do not tell whether it computes a stream: a new engine may have taken them all
    wait_for(lambda: any(cpu_seconds(pid) - before[pid] > BUSY_S for pid in engines))
    busiest = max(engines, key=lambda pid: cpu_seconds(pid) - before[pid])
    engine = psutil.Process(busiest)
    kill(engines[busiest][victim])
    for stream in streams:
        stream.reading.result()
    assert all(len(stream.ends) == 1 for stream in streams), streams
    assert "error" in {end for stream in streams for end in stream.ends}
    wait_for(lambda: not is_alive(engine))
    wait_for(lambda: sum(each["is_up"] for each in fleet.engines()) == 2)
    assert all(fleet.text(name) for name in ADAPTERS)
    own = {stream.request_id for stream in streams}
    wait_for(lambda: own <= {*fleet.ledger()})
    assert {count for name, count in Counter(fleet.ledger()).items() if name in own} == {1}


def test_after_a_kill_of_the_edge_a_new_one_serves_and_the_ledger_has_each_request_once(fleet: Fleet) -> None:
    streams = [fleet.stream(name, 1500) for name in ADAPTERS]
    (edge,) = fleet.processes("Edge")
    kill(edge.pid)
    for stream in streams:
        stream.reading.result()
    assert all(not stream.ends for stream in streams)
    wait_for(fleet.is_ready)
    assert all(fleet.text(name) for name in ADAPTERS)
    own = {stream.request_id for stream in streams}
    wait_for(lambda: own <= {*fleet.ledger()})
    assert {count for name, count in Counter(fleet.ledger()).items() if name in own} == {1}
    wait_for(lambda: not any(each["in_flight"] for each in fleet.engines()))


@pytest.mark.parametrize(("head", "blow"), [("ServeController", signal.SIGKILL), ("gcs_server", signal.SIGSTOP)])
def test_streams_and_new_requests_go_on_while_a_process_of_the_head_is_away(
    fleet: Fleet, head: str, blow: signal.Signals
) -> None:
    """Serve's controller is killed and starts anew; Ray's control store stands still for the time of a stream."""
    (process,) = fleet.of_ray(head)
    streams = [fleet.stream(name, 1500) for name in ADAPTERS[:2]]
    process.send_signal(blow)
    try:
        assert all(fleet.text(name) for name in ("base", *ADAPTERS))
        later = fleet.stream(ADAPTERS[2], 300)
        for stream in (*streams, later):
            stream.reading.result()
    finally:
        if blow is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
    assert [(stream.ends, stream.error) for stream in (*streams, later)] == [(["length"], "")] * 3
    wait_for(lambda: len(fleet.of_ray(head)) == 1)
    wait_for(lambda: sum(each["is_up"] for each in fleet.engines()) == 2)
    own = {stream.request_id for stream in (*streams, later)}
    wait_for(lambda: own <= {*fleet.ledger()})
    assert {count for name, count in Counter(fleet.ledger()).items() if name in own} == {1}


def test_the_end_of_serves_proxy_ends_its_requests_as_a_fault_and_a_new_one_serves(fleet: Fleet) -> None:
    """Their callers have not left, and so pay as for any fault."""
    streams = [fleet.stream(name, 3000) for name in ADAPTERS[:2]]
    (proxy,) = fleet.of_ray("ray::ProxyActor")
    proxy.kill()
    for stream in streams:
        stream.reading.result()
    assert [stream.ends for stream in streams] == [[], []]
    wait_for(fleet.is_ready, LONG_S)
    assert all(fleet.text(name) for name in ADAPTERS)
    own = {stream.request_id for stream in streams}
    wait_for(lambda: own <= {*fleet.ledger()}, LONG_S)
    assert Counter(row["finish_reason"] for row in fleet.rows() if row["request_id"] in own) == {"shutdown": 2}


@pytest.mark.parametrize("mode", ["handle", "direct"])
def test_a_fleet_grows_with_its_backlog_and_shrinks_to_none_and_the_next_request_starts_one(
    folder: Path, mode: str
) -> None:
    rules = {"least_engines": 0, "engines": 1, "most_engines": 2, "target_backlog_s": 0.05, "calm_s": 90, "idle_s": 10}
    settings = {"ray__mode": mode, **{f"ray__{name}": value for name, value in rules.items()}}
    with running_fleet(folder, folder / f"scaled-{mode}", engine__max_running=1, **settings) as fleet:

        def running() -> int:
            return len(fleet.processes("engine"))

        long = {"max_tokens": 1000, "ignore_eos": True}
        waiting = [fleet.readers.submit(fleet.complete, "base", "word " * 700, **long) for _ in range(8)]
        wait_for(lambda: running() == 2, LONG_S)
        for each in waiting:
            assert each.result()["usage"]["completion_tokens"] == long["max_tokens"]
        wait_for(lambda: running() == 0, LONG_S)
        assert fleet.state()["Engine"]["running"] == 0
        queued = [fleet.readers.submit(fleet.first_wait_ms, name) for name in ADAPTERS]
        assert all(each.result() > 500.0 for each in queued)  # the start of an engine takes longer
        assert running() in (1, 2)  # four requests may be backlog enough for two


def test_a_stop_during_a_stream_lets_it_end(folder: Path) -> None:
    with running_fleet(folder, folder / "stopped") as fleet:
        stream = fleet.stream("a0", 3000)
        fleet.process.terminate()
        stream.reading.result()
        assert (stream.ends, stream.error) == (["length"], "")
