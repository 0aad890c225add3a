"""The process of heavy reads, which only `heavy_read_client.py` starts: `python -m manylora.control.billing.…`.

Its first message is a `ReaderOrder`; each further one is a read, which it answers before it takes the next. It ends
with its standard input, or after `IDLE_S` seconds without a read.
"""

import asyncio
import logging
import select
import sys
from io import FileIO

import msgspec
from sqlalchemy.engine import make_url

from manylora.control.billing.heavy_read_client import (
    LENGTH,
    ReadDone,
    ReaderOrder,
    ReadFailed,
    ReadQuestion,
    ReadReply,
)
from manylora.control.billing.heavy_reads import HeavyRead, answer
from manylora.control.storage.database import Database
from manylora.errors import ControlUnavailable, ManyloraError
from manylora.failure import Failure
from manylora.system.log_lines import configure_logs, log_context

log = logging.getLogger("manylora.control.billing.heavy_read_process")  # its `__name__` is `__main__`

IDLE_S = 120.0


def main() -> int:
    configure_logs("heavy-read")
    # Unbuffered: bytes that a buffer had read ahead would not end the wait for the next read.
    stream, out = open(0, "rb", buffering=0, closefd=False), sys.stdout.buffer  # noqa: SIM115  open to the end
    order = _received(stream)
    if order is None:
        return 0
    database = Database(make_url(msgspec.msgpack.decode(order, type=ReaderOrder).url))
    with asyncio.Runner() as runner:
        while select.select([stream], [], [], IDLE_S)[0] and (question := _received(stream)) is not None:
            asked = msgspec.msgpack.decode(question, type=ReadQuestion)
            reply = msgspec.msgpack.encode(runner.run(_reply(database, asked)))
            out.write(LENGTH.pack(len(reply)) + reply)
            out.flush()
        runner.run(database.close())
    return 0


async def _reply(database: Database, asked: ReadQuestion) -> ReadReply:
    try:
        with log_context(**asked.context):
            return ReadDone(await _answered(database, asked.read))
    except ManyloraError as error:
        return ReadFailed(Failure.of(error))


async def _answered(database: Database, read: HeavyRead) -> bytes:
    """Raise as `answer`, and `ControlUnavailable` for a fault of the program: it ends one read, not the process."""
    try:
        return await answer(database, read)
    except ManyloraError:
        raise
    except Exception as error:
        log.exception("reads.failed read=%s", type(read).__name__)
        raise ControlUnavailable(f"the read failed ({type(error).__name__})") from error


def _received(stream: FileIO) -> bytes | None:
    """Return one message; None at the end of the stream."""
    head = _exactly(stream, LENGTH.size)
    return None if head is None else _exactly(stream, LENGTH.unpack(head)[0])


def _exactly(stream: FileIO, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            return None
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main())
