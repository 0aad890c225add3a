"""Slices of a stored matrix that threads read and widen while the slice before them is packed."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Sliced(Protocol[T_co]):
    """A matrix that is read by slices of rows, in any thread."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> T_co: ...


class Readers:
    """Threads that read ahead, as many slices as there are threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")

    def close(self) -> None:
        """Drop what is not begun, and wait for the rest."""
        self.pool.shutdown(wait=True, cancel_futures=True)


class ReadAhead(Generic[T]):
    """A matrix read from its first row to its last in slices of one size; the next slices are read beside the caller.

    An error of a read is raised for its own slice.

    Args:  taken  called with the number of rows of each slice, in the caller's thread
    """

    def __init__(self, matrix: Sliced[T], readers: Readers, taken: Callable[[int], None]) -> None:
        self.shape = matrix.shape
        self._matrix = matrix
        self._readers = readers
        self._taken = taken
        self._ahead: deque[tuple[slice, Future[T]]] = deque()

    def __getitem__(self, rows: slice, /) -> T:
        first, stop, _ = rows.indices(self.shape[0])
        own, count = slice(first, stop), stop - first
        if self._ahead and self._ahead[0][0] != own:
            self._ahead.clear()  # not the next slice: what was read ahead is of no use
        if not self._ahead:
            self._submit(own)
        _, result = self._ahead.popleft()
        last = self._ahead[-1][0].stop if self._ahead else stop
        while count > 0 and last < self.shape[0] and len(self._ahead) < self._readers.threads:
            following = slice(last, min(self.shape[0], last + count))
            self._submit(following)
            last = following.stop
        found = result.result()
        self._taken(count)
        return found

    def _submit(self, rows: slice) -> None:
        self._ahead.append((rows, self._readers.pool.submit(self._matrix.__getitem__, rows)))
