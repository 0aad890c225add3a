"""Products of one row: the own kernel or cuBLAS, the faster one for each shape, timed once and kept in a file."""

import json
import logging
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from manylora.kernels.cuda.jit.programs.product_kernels import one_row_kernel

BLOCK_OUTPUTS = 4
BLOCK_INPUTS = 1024
FILE = "one-row-products.json"
CALLS = 11
OVERWRITTEN_BYTES = 256 << 20
"""More than the cache of a card, which each timed call finds without the weight, as a step does."""

Seconds = Callable[[Callable[[], object]], float]
"""Returns the seconds of a call whose weight lies in no cache."""

log = logging.getLogger(__name__)


def one_row_product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x @ weight.T`: x (1, inputs), weight (outputs, inputs) → (1, outputs) in `dtype`, summed in float32."""
    outputs, inputs = weight.shape
    out = torch.empty((1, outputs), dtype=dtype, device=x.device)
    one_row_kernel[(triton.cdiv(outputs, BLOCK_OUTPUTS),)](
        x.contiguous(), weight, out, inputs, outputs, BLOCK_OUTPUTS=BLOCK_OUTPUTS, BLOCK_INPUTS=BLOCK_INPUTS
    )
    return out


def library_product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same by the library of the device."""
    if dtype is x.dtype:
        return F.linear(x, weight)
    return torch.mm(x, weight.T, out_dtype=dtype) if x.is_cuda else F.linear(x.to(dtype), weight.to(dtype))


class OneRowProducts:
    """The faster product for each shape of a weight.

    A choice that the file has is kept, so that a server gives the same tokens after a restart. Where the file cannot be
    read or written, the library multiplies, and one warning says so.

    Args:  path     of the file
           seconds  times a call
           machine  name of the card, with versions of all that a timing depends on
    """

    def __init__(self, path: Path, seconds: Seconds, machine: str) -> None:
        self._path, self._seconds, self._machine = path, seconds, machine
        self._chosen: dict[tuple[int, int, torch.dtype, torch.dtype], bool] = {}
        self._kept: dict[str, dict[str, Any]] | None = None  # the file's; values of several types

    @property
    def kept(self) -> dict[str, dict[str, Any]]:
        """The choices that the file has, with the microseconds of both ways: those of other machines, too."""
        return self._kept or {}

    def product(self, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `x @ weight.T` as `one_row_product`. The first call of a shape reads the file, or times both ways."""
        key = (*weight.shape, x.dtype, dtype)
        if key not in self._chosen:
            self._chosen[key] = weight.is_contiguous() and self._is_own_faster(x, weight, dtype)
        return (one_row_product if self._chosen[key] else library_product)(x, weight, dtype)

    def _is_own_faster(self, x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
        outputs, inputs = weight.shape
        name = f"{self._machine}, {outputs} x {inputs}, {_text(x.dtype)} to {_text(dtype)}"
        try:
            kept = self._kept = self._read() if self._kept is None else self._kept
            if name not in kept:
                own, library = (
                    self._seconds(lambda multiply=multiply: multiply(x, weight, dtype))  # type: ignore[misc]  # bound now
                    for multiply in (one_row_product, library_product)
                )
                kept[name] = {"own_us": 1e6 * own, "library_us": 1e6 * library, "is_own": own < library}
                self._write(kept)
            return bool(kept[name]["is_own"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            log.warning("products.not_chosen path=%s shape=%dx%d reason=%s", self._path, outputs, inputs, reason)
            return False

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        found = json.loads(self._path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("the file is no object of JSON")
        return found

    def _write(self, kept: dict[str, dict[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{os.getpid()}.part")  # ranks may write at once
        beside.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(self._path)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_row_products(device: torch.device, folder: Path) -> OneRowProducts:
    """Return the products of a card, whose choices lie in `folder`."""
    name, versions = torch.cuda.get_device_name(device), f"torch {torch.__version__}, triton {triton.__version__}"
    return OneRowProducts(folder / FILE, CardSeconds(device), f"{name}, {versions}")


class CardSeconds:
    """`Seconds` on a card: the median of some calls by its events, each after other bytes have filled the cache.

    Args:  cuda  the calls of `torch.cuda`
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda, num_bytes: int = OVERWRITTEN_BYTES) -> None:
        self._device, self._cuda, self._num_bytes = device, cuda, num_bytes  # torch gives events no types

    def __call__(self, run: Callable[[], object]) -> float:
        other = torch.empty(self._num_bytes, dtype=torch.uint8, device=self._device)
        run()  # compiles a kernel, opens a library
        found = []
        for _ in range(CALLS):
            begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            other.zero_()  # beside which the host gets ahead, so that no launch is in the time
            begin.record()
            run()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        return float(statistics.median(found))
