"""The questions to the engine that wait for their reply."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from manylora.errors import ManyloraError

Reply = TypeVar("Reply")


class PendingReplies(Generic[Reply]):
    """The futures of replies of one kind.

    pending  the futures by the number that question and reply share
    """

    def __init__(self) -> None:
        self.pending: dict[int, asyncio.Future[Reply]] = {}
        self._next = 0

    @contextmanager
    def expect(self) -> Iterator[tuple[int, "asyncio.Future[Reply]"]]:
        """Yield a new number and the future of its reply. A reply after the end of the block is dropped."""
        self._next += 1
        number = self._next
        future = self.pending[number] = asyncio.get_running_loop().create_future()
        try:
            yield number, future
        finally:
            self.pending.pop(number, None)

    def resolve(self, number: int, reply: Reply) -> None:
        future = self.pending.pop(number, None)
        if future is not None and not future.done():
            future.set_result(reply)

    def fail(self, error: ManyloraError) -> None:
        """Raise `error` in every task that waits for a reply."""
        for future in self.pending.values():
            if not future.done():
                future.set_exception(error)
        self.pending.clear()
