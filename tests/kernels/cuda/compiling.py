"""Every kernel and every set of its compile-time values, compiled for a card that is not here.

`python -m tests.kernels.cuda.compiling` prints one line of JSON for each: registers, shared memory, spilled bytes. It
runs without TRITON_INTERPRET, which is read when Triton is imported.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from manylora.kernels.cuda.jit import attention, experts, one_row, packed_products
from manylora.kernels.cuda.jit.adapters import BLOCK_INPUTS, BLOCK_OUTPUTS, LONG_BLOCK_OUTPUTS, splits_of
from manylora.kernels.cuda.jit.chunks import LONG_CHUNK_ROWS
from manylora.kernels.cuda.jit.programs import (
    attention_kernels,
    lora_kernels,
    packed_kernels,
    product_kernels,
    row_kernels,
)
from manylora.kernels.cuda.jit.rows import BLOCK
from manylora.kernels.cuda.packed import PAIRS
from manylora.kernels.weight_groups import MIDDLE

CAPABILITIES = {"bf16": (80, 90), "fp32": (80, 90), "fp16": (75,)}
"""Compute capabilities that are compiled for, by the dtype of rows and images; before 8.0 a card serves in fp16."""
ELEMENTS = {"bf16": False, "fp32": True, "fp16": False}
"""The same dtypes, and whether products widen their operands."""


class Variant(NamedTuple):
    """A kernel with the types of its parameters, in order, and its compile-time values."""

    kernel: Any
    types: tuple[str, ...]
    values: dict[str, int | bool]


def variants(element: str) -> Iterator[Variant]:
    """Yield the variants with rows of this dtype."""
    rows, is_wide = f"*{element}", ELEMENTS[element]
    for chunk_rows, block in ((lora_kernels.CHUNK_ROWS, BLOCK_OUTPUTS), (LONG_CHUNK_ROWS, LONG_BLOCK_OUTPUTS)):
        lora = {"IS_WIDE": is_wide, "ROWS": chunk_rows, "RANKS": lora_kernels.PAGE_RANKS}
        lora["TABLE_ENTRY"] = lora_kernels.ENTRY
        for inputs in (576, 4096, 14_336) if element == "bf16" else (4096,):
            splits, split = splits_of(inputs)
            shrunk = {**lora, "SPLIT_INPUTS": split, "BLOCK_INPUTS": BLOCK_INPUTS}
            types = (rows, "i32", rows, "*i32", "*i64", "*i32", "*fp32", *["i32"] * 8)
            yield Variant(lora_kernels.shrink_kernel, types, shrunk)
            expanded = {**lora, "SPLITS": splits, "BLOCK_OUTPUTS": block}
            types = (rows, "i32", rows, "*i32", "*i32", "*fp32", "*i64", "*i32", "*i32", "*fp32", *["i32"] * 6)
            yield Variant(lora_kernels.expand_kernel, types, expanded)
    yield from product_variants(rows, is_wide)
    yield from packed_variants(rows, is_wide)
    for adds in (True, False):
        types = (rows, "i32", rows, "i32", "*fp32", rows, "i32", "fp32")
        yield Variant(row_kernels.add_norm_kernel, types, {"ADDS": adds, "BLOCK": 8192})
    yield Variant(row_kernels.norm_heads_kernel, (rows, "i32", "*fp32", "i32", "i32", "fp32"), {"BLOCK": 128})
    yield Variant(row_kernels.gated_silu_kernel, (rows, "i32", rows, "i32"), {"BLOCK": BLOCK})
    for rotates in (True, False):
        types = (rows, "i32", "*fp32", "*fp32", "*i32", "*i64", rows, rows, rows, "i32", "i32", "i32")
        yield Variant(row_kernels.rotate_and_store_kernel, types, {"ROTATES": rotates, "BLOCK": 64})
    yield from attention_variants(rows, is_wide)


def product_variants(rows: str, is_wide: bool) -> Iterator[Variant]:
    for out in (rows, "*fp32"):
        values = {"BLOCK_OUTPUTS": one_row.BLOCK_OUTPUTS, "BLOCK_INPUTS": one_row.BLOCK_INPUTS}
        yield Variant(product_kernels.one_row_kernel, (rows, rows, out, "i32", "i32"), values)
    for block_rows, count in itertools.product((experts.FEW_ROWS, experts.MANY_ROWS), (8, 128)):
        values = {"BLOCK_ROWS": block_rows, "BLOCK_OUTPUTS": experts.BLOCK_EXPERT_OUTPUTS, "BLOCK_EXPERTS": count}
        types = (rows, rows, rows, "*i64", "*i32", "*i32", *["i32"] * 3)
        yield Variant(
            product_kernels.grouped_kernel, types, {**values, "BLOCK_INPUTS": BLOCK_INPUTS, "IS_WIDE": is_wide}
        )
    own = {"EXPERT_ENTRIES": 3, "RANKS": lora_kernels.PAGE_RANKS, "TABLE_ENTRY": lora_kernels.ENTRY}
    picks = (rows, rows, "*i64", "*i64", "*i32", "*i32", "*i64", "*i32", "*fp32", *["i32"] * 9)
    yield Variant(product_kernels.shrink_picks_kernel, picks, {**own, "BLOCK_INPUTS": BLOCK_INPUTS})
    picks = (rows, "i32", rows, "*i64", "*i64", "*i32", "*i32", "*fp32", "*i64", "*i32", "*i32", "*fp32", *["i32"] * 7)
    yield Variant(product_kernels.expand_picks_kernel, picks, {**own, "BLOCK_OUTPUTS": BLOCK_OUTPUTS})


def packed_variants(rows: str, is_wide: bool) -> Iterator[Variant]:
    tile = {"BLOCK_ROWS": packed_products.BLOCK_ROWS, "BLOCK_OUTPUTS": packed_products.BLOCK_OUTPUTS}
    tile["IS_WIDE"] = is_wide
    form = {"ZERO": MIDDLE, "PAIRS_OF_BLOCK": PAIRS}
    for has_minima, experts_of_block in itertools.product((True, False), (0, 8)):
        values = {**tile, **form, "BLOCK_EXPERTS": experts_of_block, "HAS_MINIMA": has_minima}
        values["BLOCK_PAIRS"] = packed_products.BLOCK_PAIRS
        types = (rows, rows, "*u8", "*fp16", "*fp16", "*fp32", "*i64", "*i32", "*i32", *["i32"] * 7)
        yield Variant(packed_kernels.groups_of_four_bits_kernel, types, values)
    for out, experts_of_block in ((rows, 0), (rows, 8), ("*fp32", 0)):
        values = {**tile, "BLOCK_EXPERTS": experts_of_block, "BLOCK_INPUTS": packed_products.BLOCK_INPUTS}
        types = (rows, out, "*i8", "*fp32", "*i64", "*i32", "*i32", *["i32"] * 4)
        yield Variant(packed_kernels.eight_bits_kernel, types, values)
    for has_minima in (True, False):
        values = {**form, "HAS_MINIMA": has_minima, "BLOCK_PAIRS": packed_products.BLOCK_WIDENED}
        types = ("*u8", "*fp16", "*fp16", "*fp32", rows, *["i32"] * 4)
        yield Variant(packed_kernels.widen_four_bits_kernel, types, values)
    values = {"BLOCK_INPUTS": packed_products.BLOCK_WIDENED}
    yield Variant(packed_kernels.widen_eight_bits_kernel, ("*i8", "*fp32", rows, "i32"), values)


def attention_variants(rows: str, is_wide: bool) -> Iterator[Variant]:
    groups = (1, 3, 8) if rows == "*bf16" else (4,)
    for head_dim, group, fuses in itertools.product((64, 128), groups, (True, False)):
        types = (rows, rows, "*fp32", "*fp32", "*fp32", rows, rows, "*i32", "*i32", *["i32"] * 5, "fp32")
        values = {"HEAD_DIM": head_dim, "GROUP": group, "BLOCK_DIM": head_dim, "BLOCK_ROWS": attention.LEAST_ROWS}
        values |= {"BLOCK_POSITIONS": attention.BLOCK_POSITIONS, "SPLIT": attention.SPLIT, "FUSES": fuses}
        yield Variant(attention_kernels.attend_kernel, types, {**values, "IS_WIDE": is_wide})
    for head_dim in (64, 128):
        values = {"HEAD_DIM": head_dim, "BLOCK_DIM": head_dim, "SPLIT": attention.SPLIT}
        yield Variant(attention_kernels.combine_kernel, (rows, "*fp32", "*fp32", "*fp32", "*i32", *["i32"] * 3), values)


def compiled(variant: Variant, element: str, capability: int) -> dict[str, Any]:
    """Return the resources of a variant with rows of `element` on such a card. Raises what Triton's compiler raises."""
    names = variant.kernel.arg_names
    own = [name for name in names if name not in variant.values]
    types = dict(zip(own, variant.types, strict=True))
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(variant.kernel, signature, constexprs=variant.values)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert built.asm["ptx"].count(".entry") == 1
    registers, spilled = usage(built.asm["cubin"])
    return {
        "kernel": variant.kernel.__name__,
        "capability": capability,
        "element": element,
        "values": variant.values,
        "registers": registers,
        "shared_bytes": built.metadata.shared,
        "spilled_bytes": spilled,
    }


def usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread and the bytes of its stack, which spilled registers take."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def main(step: int) -> None:
    """Print the resources of each `step`-th variant on each card."""
    every = ((element, variant) for element in ELEMENTS for variant in variants(element))
    for element, variant in itertools.islice(every, 0, None, step):
        for capability in CAPABILITIES[element]:
            print(json.dumps(compiled(variant, element, capability)), flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1)
