"""The body of a packed image during packing: values of the served dtype, each checked as it is cast."""

import math

import numpy as np

from manylora.adapters.peft.values import SPELLINGS, Values, cast_into
from manylora.adapters.refusals import Refusals


class ImageBody:
    """The image's body during packing, in the served dtype."""

    def __init__(self, elements: int, dtype: str, refuse: Refusals) -> None:
        self.values: Values = np.zeros(elements, dtype=SPELLINGS[dtype])
        self._refuse = refuse

    def fill(self, offset: int, values: Values, name: str) -> None:
        """Cast values into the body. Raises `AdapterCorrupt` if one is not finite, before or after."""
        self.cast(self.values[offset : offset + values.size], values.reshape(-1), name)

    def matrix(self, offset: int, shape: tuple[int, ...], *, is_transposed: bool = False) -> Values:
        """Return the part of the body that begins at `offset` as a writable matrix of this shape."""
        part = self.values[offset : offset + math.prod(shape)]
        return part.reshape(shape[::-1]).T if is_transposed else part.reshape(shape)

    def cast(self, target: Values, values: Values, name: str) -> None:
        """Cast values into a part of the body. Raises as `fill`."""
        if not cast_into(target, values):
            raise self._refuse.corrupt(f"{name} is not finite")

    def fill_ids(self, offset: int, ids: "np.ndarray[tuple[int], np.dtype[np.int32]]") -> None:
        raw = ids.astype("<i4").view(self.values.dtype)
        self.values[offset : offset + raw.size] = raw
