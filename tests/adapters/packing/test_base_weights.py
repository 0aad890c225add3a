"""The base's rows as packing reads them: those of the forward pass, in every format of the base's files."""

from pathlib import Path

import numpy as np
import pytest

from manylora.adapters.base_shape import EMBED_MODULE, HEAD_MODULE
from manylora.adapters.packing.base_weights import BaseWeights, pieces
from manylora.kernels.projections import Projection
from manylora.kernels.reference import ReferenceKernels
from manylora.models.fetch.catalog import resolve
from manylora.models.spec import read_spec
from manylora.models.weights import Dense, load_weights
from tests.models.checkpoints.test_quantized import save_quantized
from tests.models.gguf.test_model import random_model, save


@pytest.fixture(params=["safetensors", "gptq-order", "awq", "w4a16-zeros", "gguf"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "safetensors":
        random_model().save_pretrained(tmp_path)
    elif request.param == "gguf":
        return resolve(str(save(tmp_path / "tiny.gguf", random_model(), kind="Q8_0")), tmp_path / "cache")
    else:
        save_quantized(tmp_path, request.param)
    return tmp_path


def test_packing_reads_the_rows_of_the_forward_pass(base: Path) -> None:
    weights, source = load_weights(base, read_spec(base), ReferenceKernels()), BaseWeights(base, is_tied=False)
    mlp = weights.layers[0].mlp
    assert isinstance(mlp, Dense)
    loaded = {
        EMBED_MODULE: weights.embed,
        HEAD_MODULE: weights.head,
        (1, Projection.O): weights.layers[1].o,
        (0, Projection.DOWN): mlp.down,
    }
    for module, packed in loaded.items():
        matrix = source.matrix(module)
        found = np.concatenate([rows for _, rows in pieces(matrix)])
        assert np.array_equal(found, np.asarray(packed))  # a tensor, of the reference
        assert np.array_equal(matrix.rows(5, 9), found[5:9])
