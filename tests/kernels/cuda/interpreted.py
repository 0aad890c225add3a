"""Triton's interpreter for tests, and the differences from the reference that each dtype may have."""

import importlib.util

import pytest
import torch

from tests.conftest import missing

HOST = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest |actual - reference| / largest |reference|; in brackets the worst of this suite. The interpreter cuts float32
# off to bfloat16 where a card rounds.
CLOSE = {"float32": 4e-6, "float16": 4e-3, "bfloat16": 4e-2}


def require_triton() -> None:
    """Skip a whole file without Triton; in CI fail."""
    if importlib.util.find_spec("triton") is None:
        if_missing = "Triton is not installed (pip install triton)"
        try:
            missing(if_missing)
        except pytest.skip.Exception:
            pytest.skip(if_missing, allow_module_level=True)
