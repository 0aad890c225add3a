"""Sizes that found no room in this poll, so that no adapter that needs as much looks for room again before the next."""

from manylora.ids import Flow


class RoomCache:
    """Refused sizes: a thousand adapters that wait for room cost one search for it, not a thousand.

    If N bytes find no room for a request past its patience, no request of N bytes or more fits in this poll. A refusal
    of a patient request holds for patient requests of the same flow only, since less may be evicted for them
    (`Ascent.spared`).
    """

    def __init__(self) -> None:
        self._least_bytes: dict[Flow | None, int] = {}  # by flow for patient requests; under None for the others

    def clear(self) -> None:
        """Forget the refusals: another poll begins."""
        self._least_bytes.clear()

    def note_refusal(self, flow: Flow, num_bytes: int, *, is_patient: bool) -> None:
        key = flow if is_patient else None
        self._least_bytes[key] = min(num_bytes, self._least_bytes.get(key, num_bytes))

    def has_refused(self, flow: Flow, num_bytes: int, *, is_patient: bool) -> bool:
        """Return whether a refusal of this poll means that `num_bytes` find no room."""
        keys = (None, flow) if is_patient else (None,)
        return any(num_bytes >= self._least_bytes[key] for key in keys if key in self._least_bytes)
