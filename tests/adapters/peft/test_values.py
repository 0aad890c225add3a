"""Values of weights files in the served dtypes."""

import numpy as np
import pytest

from manylora.adapters.peft.values import SPELLINGS, Values, cast_into, narrowed

VALUES = np.array([1.0, -0.1, 6e-5, 1e-7, 65_504.0, 0.0], dtype=np.float32)


@pytest.mark.parametrize("values", [VALUES, narrowed(np.array([1.0, -0.5, 2.0**10, 2.0**-20], dtype=np.float32))])
def test_values_become_float16_as_numpy_rounds_them(values: Values) -> None:
    target: Values = np.zeros(len(values), dtype=SPELLINGS["float16"])
    assert cast_into(target, values)
    wide = values if values.dtype == np.float32 else (values.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(target, wide.astype(np.float16))


@pytest.mark.parametrize("value", [65_520.0, -1e6, np.inf, np.nan])
def test_a_value_beyond_float16_is_refused(value: float) -> None:
    target: Values = np.zeros(2, dtype=SPELLINGS["float16"])
    assert not cast_into(target, np.array([1.0, value], dtype=np.float32))
