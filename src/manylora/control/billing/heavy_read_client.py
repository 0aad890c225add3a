"""Heavy reads beside inference: a process of low priority does them, one at a time, and each tenant has its turn.

The process is started with the first of them and ends by itself when none has come for a while.
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

log = logging.getLogger(__name__)

READER_MODULE = "manylora.control.billing.heavy_read_process"
NICENESS = 19
MAX_OF_ONE = 4
"""Heavy reads of one tenant, under way and waiting."""
ANSWER_WAIT_S = 120.0
RETRY_S = 1.0
LENGTH = struct.Struct("<Q")


class ReaderOrder(msgspec.Struct, frozen=True):
    """The first message to the process. url: of the database, with its password."""

    url: str


class ReadFailed(msgspec.Struct, frozen=True, tag=True):
    failure: Failure


class ReadDone(msgspec.Struct, frozen=True, tag=True):
    body: bytes


ReadReply = ReadFailed | ReadDone


class HeavyReads:
    """Queue of the routes' heavy reads. It belongs to one event loop."""

    def __init__(self, process: "ReadProcess | None" = None) -> None:
        """`process` None: reads are done in this process, as in tests."""
        self._process = process
        self._place = asyncio.Lock()  # of the one read that is under way
        self._asked: Counter[str] = Counter()
        self._own: dict[str, asyncio.Lock] = {}  # of the tenants in `_asked`: whose read is next or under way

    async def answer(self, database: Database, asked: HeavyRead, tenant: str) -> bytes:
        """The body of the reply to a read that a tenant asks for, after its turn has come.

        Raises `StreamLimitExceeded` where too many of the tenant's wait, and as `heavy_reads.answer`.
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
        """A tenant's reads wait for each other first, so that it takes one place in the queue at most."""
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
    """One child process, which answers one question after the other."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, asked: HeavyRead) -> bytes:
        """Raises what the read raises, and `ControlUnavailable` where the process does not answer."""
        question = msgspec.msgpack.encode(asked)
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                try:
                    reply = await self._exchange(question)
                except (ConnectionError, asyncio.IncompleteReadError):
                    # It ended between two questions, as it does when none has come for a while, or was killed.
                    await self.close()
                    reply = await self._exchange(question)
        except BaseException as error:
            await self.close()  # else its answer would be taken for that to the next question
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
        process.stdin.write(LENGTH.pack(len(question)) + question)
        await process.stdin.drain()
        (size,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        reply: ReadReply = msgspec.msgpack.decode(await process.stdout.readexactly(size), type=ReadReply)
        return reply


async def _start(url: URL) -> asyncio.subprocess.Process:
    """The database's address goes through a pipe: any user may read a process's arguments."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", READER_MODULE),
        env=child_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    with suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    assert process.stdin is not None
    order = msgspec.msgpack.encode(ReaderOrder(url.render_as_string(hide_password=False)))
    process.stdin.write(LENGTH.pack(len(order)) + order)
    return process
