"""Factories of engines that cannot be built, for the process that tries it."""

import errno
import os
import signal
from typing import NoReturn

from manylora.config.settings import Config
from manylora.server.engine_client.loop import ProgressLine


def without_room(config: Config, tell: ProgressLine) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/kernels")


def without_threads(config: Config, tell: ProgressLine) -> NoReturn:
    raise RuntimeError("can't start new thread")


def without_memory(config: Config, tell: ProgressLine) -> NoReturn:
    raise MemoryError


def killed(config: Config, tell: ProgressLine) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is gone")
