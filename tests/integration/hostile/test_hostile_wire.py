"""Between our processes go plain values, over sockets and pipes of our own: nothing that could be run."""

import ast
import asyncio
import contextlib
import os
import random
import stat

import msgspec
import pytest
import zmq
import zmq.asyncio

from manylora.clock import SystemClock
from manylora.engine.events import FinishReason
from manylora.server.engine_client import messages as wire
from manylora.server.engine_client.process.worker import EngineWorker
from tests.support.paths import files_by_room, tree_of

RUNNABLE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}
ANY_OWNER = {"send_pyobj", "recv_pyobj"}
METHODS = {"torch": {"load", "save"} | ANY_OWNER, "np": {"load"} | ANY_OWNER, "numpy": {"load"} | ANY_OWNER}
"""Attributes that are called nowhere, by the name that they are an attribute of."""


def _owner(node: ast.Attribute) -> str:
    return node.value.id if isinstance(node.value, ast.Name) else ""


@pytest.mark.parametrize("room", files_by_room())
def test_nothing_is_unpickled_or_evaluated(room: str) -> None:
    trees = [tree_of(path) for path in files_by_room()[room]]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            assert not RUNNABLE & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in RUNNABLE | {"yaml"}
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in CALLS
            elif isinstance(node.func, ast.Attribute):
                assert node.func.attr not in METHODS.get(_owner(node.func), ANY_OWNER)
        elif isinstance(node, ast.Attribute) and _owner(node) == "yaml":  # other loaders build any object
            assert "load" not in node.attr.lower() or node.attr.lower().startswith("safe"), node.attr


MESSAGES: list[wire.Operation | wire.Frame] = [
    wire.StopEngine(),
    wire.GetStats(),
    wire.StartProgress("x" * 20),
    wire.AbortRequest(1 << 40, FinishReason.ABORT),
    wire.AcknowledgeFrame(3),
    wire.StepFrame(3, [1, 2], [400, 70_000], {0: wire.TokenDetails(-0.5)}),
]


def test_a_frame_of_any_bytes_is_a_message_or_an_error_of_the_decoder() -> None:
    chance = random.Random(0)
    frames = [wire.encode(message) for message in MESSAGES]
    for _ in range(20_000):
        data = bytearray(chance.choice([chance.randbytes(chance.randrange(60)), chance.choice(frames)]))
        for _ in range(chance.randrange(3)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        for decode in (wire.decode_operation, wire.decode_frame):
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                decode(bytes(data))


def test_the_socket_is_its_owner_s_alone() -> None:
    async def run() -> None:
        context = zmq.asyncio.Context()
        worker = EngineWorker(context, SystemClock())
        try:
            assert worker.folder.address == f"ipc://{worker.folder.path}/engine"
            assert (worker.folder.path / "engine").is_socket()
            facts = worker.folder.path.stat()
            assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o700, os.getuid())
        finally:
            worker.release()
            context.term()

    asyncio.run(run())
