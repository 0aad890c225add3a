"""Faults of a rank behind a real server: its requests end with a retryable error, and all ranks start anew."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.integration.ranks.ranked_server import (
    PROMPTS,
    RankedServer,
    events_of,
    make_folder,
    ranked_server,
)
from tests.support.waiting import is_alive, wait_for

pytestmark = pytest.mark.long  # each fault is a new start of all ranks
LONG = 3000
DEGREE = 2
TIMEOUT_S = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RankedServer]:
    with ranked_server(folder, folder / "log", DEGREE, f"model.rank_timeout_s={TIMEOUT_S}") as found:
        yield found


def await_new_ranks(server: RankedServer, old: list[psutil.Process]) -> None:
    """Wait until new processes have taken the places of all ranks, and serve."""
    wait_for(lambda: server.has_ranks(DEGREE, {each.pid for each in old}))
    wait_for(lambda: not any(map(is_alive, old)))
    wait_for(lambda: server.client.get("/ready").status_code == 200)


def ends_in_a_stream(server: RankedServer, sign: signal.Signals, *, of_engine: bool) -> None:
    """Send a signal to a rank under a stream and a whole request; check their errors, the new ranks and the ledger.

    No two calls have the same prompts: the server refuses a request that was in flight at two deaths.
    """
    prompts = [f"{each} {sign.name} {of_engine}" for each in PROMPTS]
    expected = server.text("a-two", PROMPTS[0])
    booked = server.completion_tokens("a-one")
    old = [server.engine(), *server.ranks()]
    body = {
        "inputs": prompts[0],
        "parameters": {"adapter_id": "a-one", "max_new_tokens": LONG, "ignore_eos_token": True},
    }
    with ThreadPoolExecutor(1) as pool, server.client.stream("POST", "/generate_stream", json=body) as stream:
        assert stream.status_code == 200, stream.read()
        events = events_of(stream)
        received = [next(events)]
        whole = pool.submit(server.complete, None, prompts[1], max_tokens=LONG, ignore_eos=True)
        wait_for(lambda: server.number("lorax_batch_current_size") == 2)
        os.kill((old[0] if of_engine else old[1]).pid, sign)
        received += events
        refused = whole.result()
    assert received[-1]["code"] == "deployment_unavailable", received[-1]
    assert "all ranks start anew" in received[-1]["error"] or of_engine
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "deployment_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    await_new_ranks(server, old)
    assert server.text("a-two", PROMPTS[0]) == expected
    tokens = sum("token" in each for each in received)
    wait_for(lambda: server.completion_tokens("a-one") > booked)
    assert server.completion_tokens("a-one") - booked == tokens


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda each: each.name)
def test_a_rank_that_ends_or_stops_in_a_stream_ends_it_with_an_error_and_all_start_anew(
    server: RankedServer, sign: signal.Signals
) -> None:
    ends_in_a_stream(server, sign, of_engine=False)


def test_the_death_of_the_first_rank_leaves_no_other(server: RankedServer) -> None:
    ends_in_a_stream(server, signal.SIGKILL, of_engine=True)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=lambda each: each.name)
def test_a_rank_that_ends_or_stops_without_work_is_noticed_and_all_start_anew(
    server: RankedServer, sign: signal.Signals
) -> None:
    old = [server.engine(), *server.ranks()]
    os.kill(old[1].pid, sign)
    wait_for(lambda: server.client.get("/health").status_code == 503)
    await_new_ranks(server, old)
    assert server.text("a-two", PROMPTS[0])


def test_a_kill_of_the_server_leaves_no_rank(folder: Path, tmp_path: Path) -> None:
    with ranked_server(folder, tmp_path / "log", DEGREE, exit_code=-signal.SIGKILL) as server:
        processes = [server.engine(), *server.ranks()]
        assert len(processes) == DEGREE
        server.edge().kill()
        wait_for(lambda: not any(map(is_alive, processes)))
