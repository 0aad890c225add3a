"""What found no room on the device in this poll: nothing that takes as much is tried again before the next."""

from manylora.ids import Flow


class RoomCache:
    """Sizes that were refused, so that a thousand adapters that wait for room cost one search for it, not a thousand.

    What is refused to a name past its patience is refused to all, and what is refused to a patient one to the patient
    ones of its flow: the less may be evicted for them (`Store._spared`), and the more bytes, the less room.
    """

    def __init__(self) -> None:
        self._least: dict[Flow | None, int] = {}  # bytes; by flow of the patient, and None for the others

    def clear(self) -> None:
        """Another poll begins."""
        self._least.clear()

    def note(self, flow: Flow, num_bytes: int, *, is_patient: bool) -> None:
        key = flow if is_patient else None
        self._least[key] = min(num_bytes, self._least.get(key, num_bytes))

    def is_sure(self, flow: Flow, num_bytes: int, *, is_patient: bool) -> bool:
        """Whether there is no use in trying."""
        keys = (None, flow) if is_patient else (None,)
        return any(num_bytes >= self._least[key] for key in keys if key in self._least)
