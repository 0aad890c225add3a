"""Threads that read packed images from the disk tier, beside the thread of the engine."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from manylora.adapters.tiers.image_folder import erase_file
from manylora.adapters.tiers.reading import ReadImage, read_or_none
from manylora.ids import Digest

READER_THREADS = 2


class ThreadedReader:
    """Reads images on a few threads, and erases files on one.

    The copy from the page cache and the checksum release the interpreter's lock.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="adapter-reader")
        self._erasers = ThreadPoolExecutor(1, thread_name_prefix="adapter-eraser")  # no read waits for an erasure
        self._erased: deque[Path] = deque()
        self._ended: deque[ReadImage] = deque()  # the threads append, `poll` takes; a deque's ends are thread-safe

    def submit(self, digest: Digest, path: Path) -> None:
        self._pool.submit(lambda: self._ended.append(read_or_none(digest, path)))

    def poll(self) -> list[ReadImage]:
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def erase(self, path: Path) -> None:
        self._erasers.submit(self._erase, path)

    def _erase(self, path: Path) -> None:
        erase_file(path)
        self._erased.append(path)

    def erased(self) -> list[Path]:
        return [self._erased.popleft() for _ in range(len(self._erased))]

    def close(self) -> None:
        """Wait for the reads under way. An erasure that had not begun is done at the next start."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._erasers.shutdown(wait=True, cancel_futures=True)
