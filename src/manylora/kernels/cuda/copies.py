"""Copies of adapters to a card on a stream of their own, beside the steps."""

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class CardCopies:
    """`Copies` on one stream. A step waits for no copy, and a copy for no step.

    A copy is for the card's own engine where its pages of host memory are locked; else the driver copies them to locked
    ones first. A step reads a copied tensor only after `has_ended`, which orders the steps' stream after the copy.
    Memory that the steps may still read when it is freed goes to no later copy before they have read it.

    Args:  cuda  the calls of `torch.cuda`
    Source: CUDA C++ Programming Guide, sections Streams, Events and Page-Locked Host Memory.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:  # torch gives streams no types
        self._device = device
        self._cuda = cuda
        self._own = cuda.Stream(device)
        self._locked: set[int] = set()  # addresses
        self._has_failed = False

    def begin(self, source: Tensor) -> "CardCopy":
        cuda = self._cuda
        with cuda.stream(self._own):
            placed = torch.empty(source.shape, dtype=source.dtype, device=self._device)
            placed.copy_(source, non_blocking=True)
            event = cuda.Event()
            event.record(self._own)
        return CardCopy(placed, source, event, cuda.current_stream(self._device))

    def lock_pages(self, memory: Tensor) -> None:
        """Lock pages of host memory, once. Where the system refuses it, copies of them take longer: one warning."""
        if not memory.nbytes:
            return
        code = int(self._cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        if not code:
            self._locked.add(memory.data_ptr())
            return
        self._clear_error()
        if not self._has_failed:
            self._has_failed = True
            log.warning("adapters.pages_not_locked bytes=%d code=%d", memory.nbytes, code)

    def unlock_pages(self, memory: Tensor) -> None:
        """Unlock pages before their memory is freed; pages that were not locked stay as they are."""
        if memory.data_ptr() not in self._locked:
            return
        self._locked.remove(memory.data_ptr())
        if int(self._cuda.cudart().cudaHostUnregister(memory.data_ptr())):
            self._clear_error()

    def _clear_error(self) -> None:
        """Take the error of the last call from CUDA, which keeps it for the next launch, here one of no use."""
        with self._cuda.stream(self._own), contextlib.suppress(RuntimeError):
            torch.ones(1, device=self._device)


class CardCopy:
    """A copy under way: `tensor` is read after `has_ended`."""

    def __init__(self, tensor: Tensor, source: Tensor, event: Any, steps: Any) -> None:
        self.tensor = tensor
        self._source: Tensor | None = source  # whose memory is read until the end
        self._event = event
        self._steps = steps  # the stream of the steps

    def has_ended(self) -> bool:
        """Return whether the copy has ended, without a wait, and order later steps after it."""
        if self._source is None:
            return True
        if not self._event.query():
            return False
        self._steps.wait_event(self._event)
        if self.tensor.is_cuda:
            self.tensor.record_stream(self._steps)
        self._source = None
        return True

    def wait(self) -> None:
        if self._source is not None:
            self._event.synchronize()
