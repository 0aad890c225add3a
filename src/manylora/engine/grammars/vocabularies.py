"""The vocabularies of grammars, and the threads that open them and compile."""

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable

from manylora.engine.grammars.compiling import Vocabulary
from manylora.engine.grammars.spelling import Added, Spelling, TextsOf, spelling_of

MAX_VOCABULARIES = 4
"""Vocabularies of adapters that are kept, beside the base's; each takes some 30 MB."""
MAX_SPELLINGS = 64
"""Spellings of adapters' tokens that are kept; each takes some kilobytes."""

OpenVocabulary = Callable[[Added], Vocabulary]


class Vocabularies:
    """The base's vocabulary and the last used ones of adapters. Any thread may call `of`; it may wait for another."""

    def __init__(self, open_vocabulary: OpenVocabulary, texts_of: TextsOf) -> None:
        self._open = open_vocabulary
        self._texts_of = texts_of
        self._lock = threading.Lock()  # over the dictionary, and so that one vocabulary is opened at a time
        self._opened: OrderedDict[Added, Vocabulary] = OrderedDict()
        self._spellings: OrderedDict[Added, Spelling] = OrderedDict({(): Spelling()})  # of the engine's thread

    def of(self, added: Added) -> Vocabulary:
        """Return the vocabulary of the base with further tokens. Raises as the function that opens it."""
        with self._lock:
            if (found := self._opened.get(added)) is None:
                found = self._opened[added] = self._open(added)
            self._opened.move_to_end(added)
            own = [other for other in self._opened if other]
            for oldest in own[: max(0, len(own) - MAX_VOCABULARIES)]:
                del self._opened[oldest]
            return found

    def spelling(self, added: Added, vocabulary: Vocabulary) -> Spelling:
        """Return the spelling of an adapter's tokens by those of the base, whose vocabulary this is.

        Thread: the engine's
        """
        if (found := self._spellings.get(added)) is None:
            found = self._spellings[added] = spelling_of(added, self._texts_of(added), vocabulary.tokenizer)
            while len(self._spellings) > MAX_SPELLINGS:
                self._spellings.popitem(last=False)
        self._spellings.move_to_end(added)
        return found

    def prepare(self) -> None:
        """Open the base's vocabulary on a thread, so that no request waits for it, and no step."""
        start_thread(self._prepared)

    def _prepared(self) -> None:
        try:
            self.of(())
        except ImportError:
            return  # each request with a grammar is refused


def lower_priority() -> None:
    """Give this thread the lowest priority, where the system knows priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def start_thread(job: Callable[[], None]) -> None:
    """Run a job on a thread of its own, which does not keep the process alive: a compilation cannot be stopped."""
    threading.Thread(target=job, name="manylora-grammar", daemon=True).start()
