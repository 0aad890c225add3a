"""A TCP proxy that can be slow, cut, stuck or down, for measurements and tests of adapters' sources behind it."""

import asyncio
import os
import socket
import threading

READ_BYTES = 1 << 14
STUCK_POLL_S = 0.02
ACCEPT_TURNS = 8
"""Turns of an event loop from a listener's event to the connection's own task, which take four, and some more.

asyncio leaves the socket open of an acceptance that its server's close overtakes.
"""
CLOSE_TURNS = 3
"""Turns from the end of a connection's task to the end of its socket: its callback, the transport, and one more."""


class Proxy:
    """A TCP proxy in front of one port. Its settings may be changed at any time.

    delay_s          seconds before a connection's first byte goes on to the server
    bytes_per_s      of each connection, towards the client; 0: no limit
    cut_after        bytes towards the client after which a connection is reset; 0: never
    is_down          connections are closed as soon as they are made or used
    is_stuck         connections are kept, and nothing is passed on

    num_refused counts the connections that were closed because of `is_down`.
    """

    def __init__(self, target_port: int, *, niceness: int = 0) -> None:
        self._niceness = niceness
        self.delay_s = 0.0
        self.bytes_per_s = 0
        self.cut_after = 0
        self.is_down = False
        self.is_stuck = False
        self.num_connections = 0
        self.num_refused = 0
        self.bytes_sent = 0
        self._target_port = target_port
        self._serving: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly once a client has gone
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._is_serving = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._is_serving.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listener))
        self._is_serving.set()
        self._loop.run_forever()
        self._loop.remove_reader(self._listener)
        self._loop.run_until_complete(_turns(ACCEPT_TURNS))
        server.close()
        while connections := asyncio.all_tasks(self._loop):
            for task in connections:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*connections, return_exceptions=True))
        self._loop.run_until_complete(_turns(CLOSE_TURNS))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also of a task that is cancelled before it begins

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        up_writer: asyncio.StreamWriter | None = None
        try:
            if self.is_down:
                self.num_refused += 1
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(self._up(reader, up_writer), self._down(up_reader, writer))
        except (OSError, asyncio.CancelledError):  # either end may be gone already
            pass
        finally:
            if up_writer is not None:
                up_writer.transport.abort()

    async def _unstuck(self) -> None:
        while self.is_stuck:  # noqa: ASYNC110 - set by another thread, which has no event of this loop
            await asyncio.sleep(STUCK_POLL_S)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            await asyncio.sleep(self.delay_s)
            await self._unstuck()
            if self.is_down:
                self.num_refused += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while data := await reader.read(READ_BYTES):
            await self._unstuck()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            writer.write(data)
            await writer.drain()
            sent += len(data)
            self.bytes_sent += len(data)
            if self.cut_after and sent >= self.cut_after:
                raise ConnectionResetError
        writer.write_eof()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
