"""Values at few of many slots, as arrays for arithmetic over a whole fleet."""

import numpy as np
from numpy.typing import NDArray


class Spots:
    """Values at some slots. Its arrays are made at the first read after a change.

    Reads are frequent (each request) and changes rare (an adapter moves), so that a dictionary alone would be read
    slot by slot.
    """

    __slots__ = ("_arrays", "_values")

    def __init__(self) -> None:
        self._values: dict[int, float] = {}
        self._arrays: tuple[NDArray[np.intp], NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def put(self, slot: int, value: float) -> None:
        self._values[slot] = value
        self._arrays = None

    def remove(self, slot: int) -> None:
        if self._values.pop(slot, None) is not None:
            self._arrays = None

    def value(self, slot: int, default: float) -> float:
        return self._values.get(slot, default)

    def arrays(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the slots and their values, both (spots,)."""
        if self._arrays is None:
            self._arrays = (
                np.fromiter(self._values, np.intp, len(self._values)),
                np.fromiter(self._values.values(), np.float64, len(self._values)),
            )
        return self._arrays
