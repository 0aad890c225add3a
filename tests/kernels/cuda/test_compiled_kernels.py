"""Every kernel compiles for cards of capability 7.5, 8.0 and 9.0, and fits into their registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.cuda.interpreted import require_triton
from tests.support.paths import ROOT

require_triton()

SHARED_BYTES = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024}
"""Shared memory of one program at most: CUDA C++ Programming Guide, table of compute capabilities."""
REGISTERS = 255
MOST_SPILLED = {"bf16": 64, "fp32": 512, "fp16": 1024}
"""Bytes that a thread may keep outside its registers; float32 is for comparisons alone.
The products of a card of 7.5 are half as deep, and hold more operands at once."""


@pytest.mark.long
def test_every_kernel_fits_the_cards(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**own, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.kernels.cuda.compiling"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    kernels = {"grouped", "shrink_picks", "expand_picks", "shrink", "expand", "add_norm", "norm_heads", "gated_silu"}
    kernels |= {"one_row", "rotate_and_store", "attend", "combine", "groups_of_four_bits", "eight_bits"}
    kernels |= {"widen_four_bits", "widen_eight_bits"}
    for capability in SHARED_BYTES:
        assert {each["kernel"] for each in found if each["capability"] == capability} == {
            f"{name}_kernel" for name in kernels
        }
    for each in found:
        assert each["registers"] <= REGISTERS, each
        assert each["shared_bytes"] <= SHARED_BYTES[each["capability"]], each
        assert each["spilled_bytes"] <= MOST_SPILLED[each["element"]], each
