"""Classification heads of adapters: those that are packed, and the refusals of those that do not fit."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manylora.adapters.packing.image import read_image, write_image
from manylora.adapters.packing.pack import PackedAdapter, pack_adapter
from manylora.adapters.peft.checkpoint import check_adapter
from manylora.errors import AdapterError
from manylora.kernels.adapter_layout import NONE, TEXT_HEAD, TOKEN_HEAD, TaskHead, blank_extras, task_head
from tests.adapters.adapter_files import (
    HIDDEN,
    LAYERS,
    LIMITS,
    REFUSE,
    TINY,
    VOCAB,
    Tensors,
    as_f32,
    config_bytes,
    lora_tensors,
    safetensors_bytes,
)

RANDOM = np.random.default_rng(3)
WEIGHT = RANDOM.standard_normal((3, HIDDEN)).astype(np.float32)
BIAS = RANDOM.standard_normal(3).astype(np.float32)
PREFIX = "base_model.model."


def pack(head: Tensors, **fields: Any) -> PackedAdapter:  # any JSON
    config = config_bytes(**{"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"], **fields})
    weights = memoryview(safetensors_bytes({**lora_tensors(), **head}))
    return pack_adapter(check_adapter(config, weights, TINY, LIMITS, REFUSE), TINY, "float32", REFUSE)


def head_of(packed: PackedAdapter) -> TaskHead | None:
    return task_head(packed.extras, *packed.table.shape[:2])


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("name", ["score.{}", "classifier.{}", "score.modules_to_save.{}"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_head_lies_in_the_image_beside_the_lora(tmp_path: Path, task: str, name: str, has_bias: bool) -> None:
    tensors = {PREFIX + name.format("weight"): as_f32(WEIGHT)}
    if has_bias:
        tensors[PREFIX + name.format("bias")] = as_f32(BIAS)
    packed = pack(tensors, task_type=task)
    write_image(
        tmp_path / "a.img",
        digest=packed.digest,
        dtype=packed.dtype,
        table=packed.table,
        body=packed.body,
        extras=packed.extras,
    )
    image = read_image(tmp_path / "a.img")
    head = task_head(image.extras, *image.table.shape[:2])
    assert head is not None
    body = np.frombuffer(image.body, dtype=np.float32)
    assert head.kind == (TEXT_HEAD if task == "SEQ_CLS" else TOKEN_HEAD)
    assert head.num_labels == 3
    assert np.array_equal(body[head.weight :][: WEIGHT.size].reshape(WEIGHT.shape), WEIGHT)
    assert (head.bias != NONE) is has_bias
    if has_bias:
        assert np.array_equal(body[head.bias :][:3], BIAS)


def test_weight_bias_and_kind_of_a_head_are_parts_of_the_digest() -> None:
    weight, bias = {PREFIX + "score.weight": as_f32(WEIGHT)}, {PREFIX + "score.bias": as_f32(BIAS)}
    other = {PREFIX + "score.weight": as_f32(WEIGHT + 1)}
    digests = {
        pack(head, task_type=task).digest
        for head in (weight, other, weight | bias)
        for task in ("SEQ_CLS", "TOKEN_CLS")
    }
    assert len(digests) == 6


def test_an_image_of_an_older_release_has_no_head() -> None:
    extras = blank_extras(LAYERS, VOCAB)
    assert task_head(extras, LAYERS, 7) is None
    assert task_head(extras[:-4], LAYERS, 7) is None


def test_a_task_without_a_head_in_config_and_file_is_a_plain_lora() -> None:
    assert head_of(pack({}, modules_to_save=None)) is None


@pytest.mark.parametrize(
    ("head", "fields", "refusal"),
    [
        ({}, {}, "the task of a classification head, and the file has no score.weight or classifier.weight"),
        ({"score.bias": BIAS}, {"modules_to_save": None}, "the file has no score.weight or classifier.weight"),
        ({"score.weight": WEIGHT[:, 1:]}, {}, "its classification head is [3, 31], not [labels, 32]"),
        ({"score.weight": WEIGHT[0]}, {}, "its classification head is [32], not [labels, 32]"),
        ({"score.weight": np.ones((4097, HIDDEN))}, {}, "its classification head is [4097, 32]"),
        ({"score.weight": WEIGHT, "score.bias": BIAS[1:]}, {}, "the bias of its classification head is [2], not [3]"),
        ({"score.weight": WEIGHT * np.inf}, {}, "the weight of the classification head is not finite"),
        ({"score.weight": WEIGHT, "score.bias": BIAS * np.nan}, {}, "bias of the classification head is not finite"),
        ({"score.weight": WEIGHT, "classifier.weight": WEIGHT}, {}, "twice, under another name"),
        ({"score.weight": WEIGHT}, {"task_type": "CAUSAL_LM"}, "a task's head (`modules_to_save`)"),
        ({"score.weight": WEIGHT}, {"task_type": "QUESTION_ANS"}, "a task's head (`modules_to_save`)"),
        ({"classifier.dense.weight": WEIGHT}, {}, "the file has no score.weight or classifier.weight"),
        ({"score.weight": WEIGHT}, {"alora_invocation_tokens": [3]}, "together with a classification head"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_with_its_fault(
    head: dict[str, np.ndarray[Any, Any]], fields: dict[str, Any], refusal: str
) -> None:
    tensors = {PREFIX + name: as_f32(values.astype(np.float32)) for name, values in head.items()}
    with pytest.raises(AdapterError, match=re.escape(refusal)):
        pack(tensors, **fields)
