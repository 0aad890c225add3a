"""Trials of grammars: each but plain ones is compiled in a process that can be ended, before the engine compiles it.

The compiler has no way to stop, and its work is not bounded by the size of a grammar.
"""

import json
import logging
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from manylora.config.environment import child_environment
from manylora.models.text.grammar import GrammarSource

log = logging.getLogger(__name__)

WAIT_S = 30.0
"""A trial without an answer after this long has had no processor."""
MAX_STARTS_IN_A_ROW = 2
_LONGEST_ANSWER = 32


class Failed(Enum):
    """The reason why a trial gave no answer.

    LIMITS  the compilation takes more processor time or memory than it may
    AWAY    the process could not be asked, or had no processor
    """

    LIMITS = auto()
    AWAY = auto()


@dataclass(frozen=True, slots=True)
class Passed:
    """The compilation ended within its limits, well or badly.

    num_bytes  memory that its result holds
    cpu_s      seconds of processor time that it took
    """

    num_bytes: int
    cpu_s: float


Verdict = Passed | Failed


class Trials(Protocol):
    """The trials of grammars."""

    def verdict(self, source: GrammarSource) -> Verdict:
        """Try a grammar over the base's vocabulary, which bounds the work over an adapter's as well. Any thread."""

    def close(self) -> None:
        """End the process. A trial under way is over."""


@dataclass(frozen=True, slots=True)
class VocabularyText:
    """The arguments of `open_vocabulary`.

    packed  the text, compressed: it is kept for each start of the process, since the library that writes it holds the
            interpreter meanwhile
    """

    packed: bytes
    size: int
    ends: tuple[int, ...]

    @classmethod
    def of(cls, text: str, size: int, ends: tuple[int, ...]) -> "VocabularyText":
        return cls(zlib.compress(text.encode(), level=1), size, ends)

    @property
    def text(self) -> str:
        return zlib.decompress(self.packed).decode()


class ProcessTrials:
    """Trials in a process, which starts with `prepare` or the first grammar and again after its end."""

    def __init__(self, vocabulary: Callable[[], VocabularyText]) -> None:
        self._vocabulary = vocabulary
        self._num_answers = 0
        self._lock = threading.Lock()  # over the three fields below
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_closed = False

    def prepare(self) -> None:
        """Start the process. Takes some milliseconds, and a thread meanwhile."""
        with self._lock:
            self._started()

    def verdict(self, source: GrammarSource) -> Verdict:
        fields = {"kind": source.kind.value, "text": source.text, "whitespace": source.whitespace}
        job = json.dumps(fields).encode()
        for _ in range(MAX_STARTS_IN_A_ROW):
            asked = self._num_answers
            mine, theirs = socket.socketpair()
            with mine:
                with theirs:
                    if not self._is_sent(theirs):
                        continue
                mine.settimeout(WAIT_S)
                try:
                    mine.sendall(job)
                    mine.shutdown(socket.SHUT_WR)
                    answer = mine.recv(_LONGEST_ANSWER)
                except TimeoutError:
                    self._end_if_silent(asked)
                    return Failed.AWAY
                except OSError:  # what had the socket has ended, and has not read the grammar
                    if self._is_running():
                        return Failed.AWAY
                    continue
                self._num_answers += 1
                if answer:
                    num_bytes, cpu_us = answer.split()
                    return Passed(int(num_bytes), 1e-6 * int(cpu_us))
                if self._is_running():
                    return Failed.LIMITS
        return Failed.AWAY

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._end()

    def _is_sent(self, theirs: socket.socket) -> bool:
        """Pass one end of a trial's socket on; return whether there is a process that takes it."""
        with self._lock:
            try:
                if (engine := self._started()) is None:
                    return False
                socket.send_fds(engine, [b"j"], [theirs.fileno()])
            except OSError:
                self._end()
                return False
        return True

    def _end_if_silent(self, num_answers: int) -> None:
        """End a process that has answered nothing since then: it is stuck, and the next trial starts another."""
        with self._lock:
            if self._num_answers == num_answers and self._process is not None:
                log.warning("grammar.trials_stuck")
                self._end()

    def _is_running(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.poll() is None

    def _started(self) -> socket.socket | None:
        if self._is_closed:
            return None
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._socket is None:
            try:
                self._socket = self._start()
            except BaseException:
                self._end()
                raise
        return self._socket

    def _start(self) -> socket.socket:
        engine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "manylora.engine.grammars.trial_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
            )
        try:
            vocabulary = self._vocabulary()
            head = {"size": vocabulary.size, "ends": vocabulary.ends, "bytes": len(vocabulary.packed)}
            engine.settimeout(WAIT_S)
            engine.sendall(json.dumps(head).encode() + b"\n" + vocabulary.packed)
        except BaseException:
            engine.close()
            raise
        return engine

    def _end(self) -> None:
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            process.kill()
            process.wait()
