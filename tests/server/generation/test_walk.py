"""The walk of a request through the server: the files that it enters on its way in, and those of each token's way out.

A file is entered where one of its functions begins; a coroutine that only waits for another one is not entered again.
"""

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType

import pytest

import manylora.server
from manylora.engine.request import Request
from manylora.server.engine_client.streams import SequenceStream
from tests.server.asgi_client import calling
from tests.server.conftest import House

SERVER = f"{Path(manylora.server.__file__).parent}/"
MOST_IN, MOST_OUT = 21, 8
REPEATS = 3
"""Only files of every repetition count: the engine's statistics, once a second, are no part of a walk."""
PIECES = 5
ONE_CALL = ("schemas/", "app/middleware/")
"""Rooms that a walk passes in one go, whatever files that enters: a model reads itself, a layer calls the next one."""
BODIES = {
    "/v1/completions": {"model": "triage", "prompt": "HOLD", "stream": True, "max_tokens": 400},
    "/v1/chat/completions": {"model": "", "messages": [{"role": "user", "content": "HOLD"}], "stream": True},
    "/generate_stream": {"inputs": "HOLD", "parameters": {"adapter_id": "triage"}},
}


class Walk:
    """The files of `server/` that are entered, in any thread, while it records; in the order of their first entry."""

    def __init__(self) -> None:
        self._files: dict[str, None] = {}
        self._deaf: set[int] = set()  # threads whose part of the walk is over
        self._is_recording = False

    def begin(self) -> None:
        self._files, self._deaf, self._is_recording = {}, set(), True

    def leave_thread(self) -> None:
        """Record nothing more of the thread that calls."""
        self._deaf.add(threading.get_ident())

    def end(self) -> tuple[str, ...]:
        self._is_recording = False
        return tuple(self._files)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """Take an event of the profiler."""
        if not self._is_recording or event != "call" or threading.get_ident() in self._deaf:
            return
        path = frame.f_code.co_filename
        if path.startswith(SERVER) and frame.f_lasti == _start_of(frame.f_code):
            self._files.setdefault(_stop_of(path.removeprefix(SERVER)))


def _stop_of(name: str) -> str:
    return next((room for room in ONE_CALL if name.startswith(room)), name)


@cache
def _start_of(code: CodeType) -> int:
    """The place of the first instruction that runs: later ones of the same name are where a coroutine goes on."""
    return next(each.offset for each in dis.get_instructions(code) if each.opname == "RESUME")


@contextmanager
def profiled() -> Iterator[Walk]:
    """Watch this thread and those that start in the block."""
    walk = Walk()
    threading.setprofile(walk.note)
    sys.setprofile(walk.note)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def way_in(house: House, walk: Walk, path: str) -> set[str]:
    """The files entered from the ASGI application to the engine's `submit`, while another request is in the engine."""
    submitted = len(house.engine.submitted)
    async with calling(house.app, "/generate_stream", {"inputs": "WAIT"}):
        await house.until(lambda: len(house.engine.submitted) > submitted)  # in flight it is before it is submitted
        return await handed_in(house, walk, path)


async def handed_in(house: House, walk: Walk, path: str) -> set[str]:
    hand_over, submit = house.link.generate, house.engine.submit
    found: list[str] = []

    def handed_over(request: Request) -> SequenceStream:
        stream = hand_over(request)
        walk.leave_thread()  # it goes on with reading
        return stream

    def submitted(request: Request) -> None:
        found.extend(walk.end())
        submit(request)

    house.link.generate, house.engine.submit = handed_over, submitted  # type: ignore[method-assign]  # of this house
    try:
        walk.begin()
        async with calling(house.app, path, BODIES[path]) as caller:
            await caller.chunk()
    finally:
        house.link.generate, house.engine.submit = hand_over, submit  # type: ignore[method-assign]  # as it was
    return set(found)


async def way_out(house: House, walk: Walk, path: str) -> set[str]:
    """The files entered from the engine's step to the ASGI server's `send`, for tokens in the middle of a stream."""
    async with calling(house.app, path, BODIES[path]) as caller:
        await caller.chunk()
        await caller.chunk()
        walk.begin()
        for _ in range(PIECES):
            await caller.chunk()
        return set(walk.end())


def walked(in_house: Callable[..., None], way: Callable[..., object], path: str) -> set[str]:
    """The files of every repetition."""
    found: list[set[str]] = []

    async def scenario(house: House, walk: Walk) -> None:
        await measured(house, walk)  # the adapter's text is known from now on, and all is imported
        for _ in range(REPEATS):
            await house.until(lambda: not house.engine.has_work)  # the requests of the repetition before
            found.append(await measured(house, walk))

    async def measured(house: House, walk: Walk) -> set[str]:
        files: set[str] = await way(house, walk, path)  # type: ignore[misc]  # both ways are coroutine functions
        return files

    with profiled() as walk:
        in_house(partial(scenario, walk=walk))
    return set.intersection(*found)


@pytest.mark.parametrize("path", BODIES)
def test_a_request_enters_few_files_on_its_way_in(in_house: Callable[..., None], path: str) -> None:
    files = walked(in_house, way_in, path)
    assert {"app/middleware/", "generation/service.py", "engine_client/loop.py"} <= files
    assert len(files) <= MOST_IN, "\n".join(sorted(files))


@pytest.mark.parametrize("path", BODIES)
def test_a_token_enters_few_files_on_its_way_out(in_house: Callable[..., None], path: str) -> None:
    files = walked(in_house, way_out, path)
    assert {"engine_client/loop.py", "generation/outputs.py", "app/middleware/"} <= files
    assert len(files) <= MOST_OUT, "\n".join(sorted(files))
