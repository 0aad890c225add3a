"""Threads for what would hold up the event loop: tokenising and listing directories."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

MAX_WORKERS = 2

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class WorkPool:
    """A few threads; what waits for one is bounded by the limit on concurrent requests."""

    def __init__(self, max_workers: int = MAX_WORKERS) -> None:
        self._executor = ThreadPoolExecutor(max_workers, thread_name_prefix="manylora-edge")

    async def run(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call `function` in a thread and return what it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
