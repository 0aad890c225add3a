"""Copies of adapters to a device that end before they return."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class EndedCopy:
    """A `Copy` that has ended: `tensor` is on the device."""

    tensor: Tensor

    def has_ended(self) -> bool:
        return True

    def wait(self) -> None:
        """Return at once."""


class ImmediateCopies:
    """`Copies` by a call that returns the copied tensor, `Kernels.place`. No page of the host is locked for it."""

    def __init__(self, place: Callable[[Tensor], Tensor]) -> None:
        self._place = place

    def begin(self, source: Tensor) -> EndedCopy:
        return EndedCopy(self._place(source))

    def lock_pages(self, memory: Tensor) -> None:
        """Do nothing: the copy waits for the pages."""

    def unlock_pages(self, memory: Tensor) -> None:
        """Do nothing, as `lock_pages`."""
