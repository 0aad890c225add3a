"""The limits of a card, measured in the run that is divided by them: memory, matrix products, pinned copies."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

CALLS = 10
Clock = Callable[[], float]
"""Seconds, read when the device has done its work."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """
    copy_bytes_per_s    of a copy in the card's memory, bytes read and written
    matrix_per_s        multiplications and additions of a square product in the dtype of weights
    pinned_bytes_per_s  of a copy from locked host memory to the card
    """

    copy_bytes_per_s: float
    matrix_per_s: float
    pinned_bytes_per_s: float


def clock_of(device: torch.device) -> Clock:
    """Return a clock that waits for the device."""

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised if device.type == "cuda" else time.perf_counter


def measure(device: torch.device, dtype: torch.dtype, rounds: int, clock: Clock) -> Ceilings:
    """Return the ceilings of a device: each the fastest of `rounds` of several calls, after one that is not counted."""
    is_card = device.type == "cuda"
    num_bytes, widths = (1 << 30, (4096, 8192, 16_384)) if is_card else (1 << 20, (64,))

    def best(run: Callable[[], object]) -> float:
        run()
        found = []
        for _ in range(rounds):
            begun = clock()
            for _ in range(CALLS):  # beside which the clock's own wait is short
                run()
            found.append((clock() - begun) / CALLS)
        return min(found)

    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    copy_s = best(lambda: target.copy_(source))
    pinned = torch.zeros(num_bytes // 4, dtype=torch.uint8, pin_memory=is_card)
    pinned_s = best(lambda: target[: num_bytes // 4].copy_(pinned, non_blocking=True))
    products = []
    for width in widths:
        square = torch.randn(width, width, device=device).to(dtype)
        products.append(2 * width**3 / best(lambda square=square: square @ square.T))  # type: ignore[misc]  # bound now
    return Ceilings(2 * num_bytes / copy_s, max(products), num_bytes // 4 / pinned_s)
