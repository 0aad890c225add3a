"""The addresses that native code gets are taken once, when an adapter is placed."""

import ctypes
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from manylora.ids import Digest
from manylora.kernels.adapter_layout import VECTORS_AT, blank_extras
from manylora.kernels.cpu.capture import NativeSegments
from manylora.kernels.lora_batch import LoraBatch, LoraSegment, PlacedAdapter


def placed(*, has_extras: bool) -> PlacedAdapter:
    extras: dict[str, Any] = {"extras": blank_extras(2, 90)} if has_extras else {}
    return PlacedAdapter(Digest("0" * 64), torch.zeros(8), np.zeros((2, 7, 3), dtype=np.int64), **extras)


@pytest.mark.parametrize("has_extras", [False, True])
def test_they_lead_to_the_parts_of_the_adapter(has_extras: bool) -> None:
    adapter = placed(has_extras=has_extras)
    found = adapter.addresses
    assert (found.image, found.table) == (adapter.image.data_ptr(), adapter.table.ctypes.data)
    assert bool(found.extras) == bool(found.vectors) == has_extras
    if has_extras:
        first_vector = int(adapter.extras[VECTORS_AT])
        assert ctypes.c_int64.from_address(found.extras + 8 * VECTORS_AT).value == first_vector
        assert found.vectors == adapter.extras[first_vector:].ctypes.data
    moved = dataclasses.replace(adapter, image=torch.ones(8))
    assert moved.addresses.image == moved.image.data_ptr() != found.image


def test_a_step_asks_no_tensor_for_its_address() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"a step reads `{name}` of a placed adapter's tensor")

    adapter = placed(has_extras=True)
    weight = ctypes.c_int64.from_buffer(ctypes.c_double(0.75)).value
    numbers = (3, 5, *adapter.addresses, weight)
    for name in ("image", "table"):
        object.__setattr__(adapter, name, Untouchable())  # the class is frozen
    segments = NativeSegments(LoraBatch((LoraSegment(3, 5, adapter, 0.75),)))
    assert tuple((ctypes.c_int64 * 7).from_address(segments.address)) == numbers
