"""The texts of the fake engine's adapters: `known` has those that say something, by id; every other says nothing."""

import threading
from pathlib import Path

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import NO_WORDS, AdapterWords
from manylora.engine.texts import TextAnswer
from manylora.errors import ManyloraError
from manylora.ids import Flow
from manylora.models.text.adapter_text import AdapterText, text_digest


class FakeTexts:
    """Answers at once. `asked` and `dropped` are for tests to look at; `is_held` keeps the answers back.

    The engine hangs with its next question while `goes_on` is not set.
    """

    def __init__(self) -> None:
        self.known: dict[str, AdapterWords] = {}
        self.failures: dict[str, ManyloraError] = {}
        self.asked: list[AdapterRef] = []
        self.dropped: list[int] = []
        self.is_held = False
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._answers: list[TextAnswer] = []

    def say(self, adapter_id: str, text: AdapterText, folder: Path) -> str:
        """Let an adapter say something, as its file has it; returns the digest."""
        data = text.to_bytes()
        digest = text_digest(data)
        file = folder / f"{digest}.text"
        file.write_bytes(data)
        self.known[adapter_id] = AdapterWords(digest, str(file))
        return digest

    def digest_of(self, adapter_id: str) -> str:
        return self.known.get(adapter_id, NO_WORDS).digest

    def ask(self, number: int, ref: AdapterRef, flow: Flow, weight: int) -> None:
        self.asked.append(ref)
        self.goes_on.wait()
        self._answers.append(
            TextAnswer(
                number=number,
                words=self.known.get(ref.id, NO_WORDS),
                error=self.failures.get(ref.id),
                found_in="on_disk",
                waited_ms=0.0,
            )
        )

    def drop(self, number: int) -> None:
        self.dropped.append(number)

    def take(self) -> list[TextAnswer]:
        if self.is_held:
            return []
        answers, self._answers = self._answers, []
        return answers
