"""Queue of heavy reads: a process of low priority does them one at a time, and tenants take turns.

The process starts with the first read and ends after some time without one.
"""

import asyncio
import logging
import os
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
from sqlalchemy import URL

from manylora.config.environment import child_environment
from manylora.control.billing.heavy_reads import HeavyRead, answer
from manylora.control.storage.database import Database
from manylora.errors import ControlUnavailable, StreamLimitExceeded
from manylora.failure import Failure
from manylora.system.log_lines import current_log_context

log = logging.getLogger(__name__)

READER_MODULE = "manylora.control.billing.heavy_read_process"
NICENESS = 19
MAX_OF_ONE = 4
"""Limit of one tenant's heavy reads, running and waiting."""
ANSWER_WAIT_S = 120.0
RETRY_S = 1.0
LENGTH = struct.Struct("<Q")


class ReaderOrder(msgspec.Struct, frozen=True):
    """First message to the process. url: of the database, with its password."""

    url: str


class ReadQuestion(msgspec.Struct, frozen=True):
    """One read. context: fields of each log line about it."""

    read: HeavyRead
    context: dict[str, object]


class ReadFailed(msgspec.Struct, frozen=True, tag=True):
    failure: Failure


class ReadDone(msgspec.Struct, frozen=True, tag=True):
    body: bytes


ReadReply = ReadFailed | ReadDone


class HeavyReads:
    """Queue of the routes' heavy reads. An object belongs to one event loop."""

    def __init__(self, process: "ReadProcess | None" = None) -> None:
        """`process` None: reads run in this process."""
        self._process = process
        self._place = asyncio.Lock()  # held by the running read
        self._asked: Counter[str] = Counter()
        self._own: dict[str, asyncio.Lock] = {}  # one lock for each tenant in `_asked`: its holder is next or running

    async def answer(self, database: Database, asked: HeavyRead, tenant: str) -> bytes:
        """Wait for a tenant's turn; return the body of the reply to its read.

        Raises `StreamLimitExceeded` for too many reads of the tenant, and as `heavy_reads.answer`.
        """
        async with self._turn(tenant):
            if self._process is None:
                return await answer(database, asked)
            return await self._process.ask(asked)

    async def close(self) -> None:
        if self._process is not None:
            await self._process.close()

    @asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn. Reads of one tenant run one after the other, so it takes at most one place in the queue."""
        if self._asked[tenant] >= MAX_OF_ONE:
            raise StreamLimitExceeded(
                f"Rate limit exceeded: {MAX_OF_ONE} reads of usage, ledger, invoices or logs of tenant `{tenant}` "
                "at one time",
                wait_s=RETRY_S,
            )
        self._asked[tenant] += 1
        try:
            async with self._own.setdefault(tenant, asyncio.Lock()), self._place:
                yield
        finally:
            self._asked[tenant] -= 1
            if not self._asked[tenant]:
                del self._asked[tenant]
                self._own.pop(tenant, None)


class ReadProcess:
    """One child process, which answers one read after the other."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, asked: HeavyRead) -> bytes:
        """Return the reply of the process. Raise the error of the read, or `ControlUnavailable` without a reply."""
        question = msgspec.msgpack.encode(ReadQuestion(asked, current_log_context()))
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                try:
                    reply = await self._exchange(question)
                except (ConnectionError, asyncio.IncompleteReadError):
                    # It ended between two reads: after some time without one, or by a signal.
                    await self.close()
                    reply = await self._exchange(question)
        except BaseException as error:
            await self.close()  # else its reply would answer the next read
            if isinstance(error, TimeoutError):
                raise ControlUnavailable(f"the read took longer than {ANSWER_WAIT_S:g} s; ask for less") from error
            if isinstance(error, OSError | asyncio.IncompleteReadError):
                raise ControlUnavailable(f"the process that reads the ledger does not answer: {error}") from error
            raise
        if isinstance(reply, ReadDone):
            return reply.body
        raise reply.failure.to_error()

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())

    async def _exchange(self, question: bytes) -> ReadReply:
        if self._process is None:
            self._process = await _start(self._url)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdin.is_closing():  # a write would raise `RuntimeError` on uvloop, and be dropped on asyncio's loop
            raise ConnectionResetError("the process has ended")
        process.stdin.write(LENGTH.pack(len(question)) + question)
        await process.stdin.drain()
        (size,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        reply: ReadReply = msgspec.msgpack.decode(await process.stdout.readexactly(size), type=ReadReply)
        return reply


async def _start(url: URL) -> asyncio.subprocess.Process:
    """Start the process. It gets the database's URL through a pipe: any user may read a process's arguments."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", READER_MODULE),
        env=child_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    with suppress(OSError):  # the process has ended
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    assert process.stdin is not None
    order = msgspec.msgpack.encode(ReaderOrder(url.render_as_string(hide_password=False)))
    process.stdin.write(LENGTH.pack(len(order)) + order)
    return process
