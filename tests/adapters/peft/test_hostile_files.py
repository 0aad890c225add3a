"""An adapter is hostile input: whatever its two files hold, the answer is a packed adapter or one of our errors."""

import contextlib
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora import errors
from manylora.adapters.peft.checkpoint import AdapterLimits, check_adapter
from manylora.adapters.peft.safetensors_header import MAX_HEADER_BYTES
from tests.adapters.adapter_files import (
    HIDDEN,
    LIMITS,
    REFUSE,
    TINY,
    as_f32,
    config_bytes,
    lora_tensors,
    name_of,
    packed,
    safetensors_bytes,
)

GOOD = safetensors_bytes(lora_tensors())
HEADER_BYTES = int.from_bytes(GOOD[:8], "little")
HEADER = json.loads(GOOD[8 : 8 + HEADER_BYTES])
BODY = GOOD[8 + HEADER_BYTES :]
FIRST = next(iter(HEADER))


def with_header(header: object, body: bytes = BODY) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def changed(name: str = FIRST, **fields: Any) -> bytes:  # any JSON
    return with_header({**HEADER, name: {**HEADER[name], **fields}})


def renamed(new: str) -> bytes:
    return with_header({(new if name == FIRST else name): fields for name, fields in HEADER.items()})


def one_pair(a: tuple[int, int], b: tuple[int, int]) -> bytes:
    return safetensors_bytes({name_of(0, 0, "A"): as_f32(np.ones(a)), name_of(0, 0, "B"): as_f32(np.ones(b))})


LAYER = "base_model.model.model.layers"
TOO_LONG = (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(2 << 20)
TWICE = json.dumps(HEADER).encode()[:-1] + b", " + json.dumps(HEADER).encode()[1:]
TOO_MANY = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(17_000)}
ELSEWHERE = "base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight"

WRONG: dict[str, tuple[bytes, type[errors.AdapterError]]] = {
    "nothing": (b"", errors.AdapterCorrupt),
    "seven bytes": (b"1234567", errors.AdapterCorrupt),
    "a pickle": (b"\x80\x04\x95" + bytes(100), errors.AdapterUnsafeFormat),
    "a zip archive, as torch.save writes": (b"PK\x03\x04" + bytes(100), errors.AdapterUnsafeFormat),
    "an ELF file": (b"\x7fELF\x02\x01\x01" + bytes(100), errors.AdapterCorrupt),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", errors.AdapterCorrupt),
    "a header longer than allowed": (TOO_LONG, errors.AdapterCorrupt),
    "a header longer than the file": ((1 << 19).to_bytes(8, "little") + b"{}", errors.AdapterCorrupt),
    "a header of 2**63": (b"\xff" * 8 + bytes(100), errors.AdapterCorrupt),
    "not JSON": (with_header(b"{nonsense"), errors.AdapterCorrupt),
    "not UTF-8": (with_header(b'{"\xff": 1}'), errors.AdapterCorrupt),
    "a JSON list": (with_header(b"[1, 2]"), errors.AdapterCorrupt),
    "deep nesting": (with_header(b'{"a":' + b"[" * 100_000), errors.AdapterCorrupt),
    "an endless number": (with_header(b'{"a":' + b"9" * 10_000 + b"}"), errors.AdapterCorrupt),
    "duplicate tensors": (with_header(TWICE), errors.AdapterCorrupt),
    "metadata of half a character": (
        with_header({**HEADER, "__metadata__": {"\ud800": "a"}}),
        errors.AdapterCorrupt,
    ),
    "metadata of numbers": (with_header({**HEADER, "__metadata__": {"a": 1}}), errors.AdapterCorrupt),
    "a negative zero": (with_header(json.dumps(HEADER).replace("[0, ", "[-0, ", 1).encode()), errors.AdapterCorrupt),
    "17,000 tensors": (with_header(TOO_MANY, b""), errors.AdapterCorrupt),
    "no tensors": (with_header({}, b""), errors.AdapterCorrupt),
    "truncated": (GOOD[:-1], errors.AdapterCorrupt),
    "longer than described": (GOOD + b"\0", errors.AdapterCorrupt),
    "float64": (changed(dtype="F64"), errors.AdapterCorrupt),
    "int8": (changed(dtype="I8"), errors.AdapterCorrupt),
    "a dtype that is a list": (changed(dtype=["F32"]), errors.AdapterCorrupt),
    "an additional field": (changed(extra=1), errors.AdapterCorrupt),
    "a negative size": (changed(shape=[-4, -HIDDEN]), errors.AdapterCorrupt),
    "a shape of booleans": (changed(shape=[True, HIDDEN]), errors.AdapterCorrupt),
    "a shape of floats": (changed(shape=[4.0, HIDDEN]), errors.AdapterCorrupt),
    "a product over 64 bits": (changed(shape=[1 << 61, 1 << 61]), errors.AdapterCorrupt),
    "a product that wraps to the right size": (changed(shape=[(1 << 62) - 1, 4, 1 << 62]), errors.AdapterCorrupt),
    "thirty dimensions": (changed(shape=[1] * 30 + [4, HIDDEN]), errors.AdapterCorrupt),
    "overlapping tensors": (changed(data_offsets=[16, 16 + 4 * 4 * HIDDEN]), errors.AdapterCorrupt),
    "reversed offsets": (changed(data_offsets=[512, 0]), errors.AdapterCorrupt),
    "offsets past the end": (changed(data_offsets=[1 << 40, (1 << 40) + 512]), errors.AdapterCorrupt),
    "another module": (renamed(ELSEWHERE), errors.AdapterCorrupt),
    "a layer too many": (renamed(name_of(99, 0, "A")), errors.AdapterIncompatible),
    "a layer spelt twice": (renamed(name_of(0, 0, "A").replace("layers.0", "layers.00")), errors.AdapterIncompatible),
    "a name with control characters": (renamed("\x1b[31m" * 1000), errors.AdapterCorrupt),
    "a name with control characters of a module that is named": (
        renamed("\x1b[31m.q_proj.lora_" + "\x1b[31m" * 1000),
        errors.AdapterIncompatible,
    ),
    "a whole projection": (
        safetensors_bytes({**lora_tensors(), f"{LAYER}.0.mlp.up_proj.base_layer.weight": as_f32(np.ones((2, 2)))}),
        errors.AdapterUnsupported,
    ),
    "B without A": (safetensors_bytes(dict(list(lora_tensors().items())[1:])), errors.AdapterCorrupt),
    "a rank of zero": (one_pair((0, HIDDEN), (HIDDEN, 0)), errors.AdapterCorrupt),
    "ranks that disagree": (one_pair((4, HIDDEN), (HIDDEN, 8)), errors.AdapterCorrupt),
    "another width": (one_pair((4, 64), (64, 4)), errors.AdapterIncompatible),
    "a rank over the limit": (one_pair((65, HIDDEN), (HIDDEN, 65)), errors.AdapterTooLarge),
}  # fmt: skip


@pytest.mark.parametrize(("weights", "error"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused(weights: bytes, error: type[errors.AdapterError]) -> None:
    with pytest.raises(error) as refusal:
        packed(config_bytes(), weights)
    assert len(refusal.value.message) < 500
    assert refusal.value.message.isprintable()


LIES: dict[str, tuple[dict[str, Any], type[errors.AdapterError]]] = {
    "another rank": ({"r": 8}, errors.AdapterCorrupt),
    "a rank of a million": ({"r": 10**6}, errors.AdapterCorrupt),
    "a rank of 10**400": ({"r": 10**400}, errors.AdapterCorrupt),
    "a negative rank": ({"r": -4}, errors.AdapterCorrupt),
    "a rank of True": ({"r": True}, errors.AdapterCorrupt),
    "a rank of 4.0": ({"r": 4.0}, errors.AdapterCorrupt),
    "a rank_pattern that disagrees": ({"rank_pattern": {"q_proj": 2}}, errors.AdapterCorrupt),
    "alpha NaN": ({"lora_alpha": math.nan}, errors.AdapterCorrupt),
    "alpha infinite": ({"lora_alpha": math.inf}, errors.AdapterCorrupt),
    "alpha 1e308": ({"lora_alpha": 1e308}, errors.AdapterCorrupt),
    "alpha 10**400": ({"lora_alpha": 10**400}, errors.AdapterCorrupt),
    "alpha negative": ({"lora_alpha": -8}, errors.AdapterCorrupt),
    "alpha a text": ({"lora_alpha": "8"}, errors.AdapterCorrupt),
    "alpha null": ({"lora_alpha": None}, errors.AdapterCorrupt),
    "alpha_pattern of texts": ({"alpha_pattern": {"q_proj": "1"}}, errors.AdapterCorrupt),
    "alpha_pattern a list": ({"alpha_pattern": [1]}, errors.AdapterCorrupt),
    "a catastrophic pattern": ({"alpha_pattern": {"(a+)+$": 1}}, errors.AdapterCorrupt),
    "a broken pattern": ({"alpha_pattern": {"(": 1}}, errors.AdapterCorrupt),
    "use_rslora a text": ({"use_rslora": "yes"}, errors.AdapterCorrupt),
    "no peft_type": ({"peft_type": None}, errors.AdapterCorrupt),
    "another peft_type": ({"peft_type": "LOHA"}, errors.AdapterUnsupported),
    "bias of a new kind": ({"bias": "some"}, errors.AdapterCorrupt),
    "an unknown field": ({"use_newest_trick": True}, errors.AdapterUnsupported),
    "an unknown field of zero": ({"newest_number": 0}, errors.AdapterUnsupported),
    "an unknown field inside a known one": ({"eva_config": {"rho": 2, "newest": 1}}, errors.AdapterUnsupported),
    "DoRA with a bias, which PEFT refuses": ({"use_dora": True, "lora_bias": True}, errors.AdapterUnsupported),
    "qalora": ({"use_qalora": True}, errors.AdapterUnsupported),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, errors.AdapterUnsupported),
    "arrow": ({"arrow_config": {"top_k": 3}}, errors.AdapterUnsupported),
    "kasa": ({"kasa_config": {"beta": 1}}, errors.AdapterUnsupported),
    "monteclora": ({"monteclora_config": {"samples": 8}}, errors.AdapterUnsupported),
    "target_parameters": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, errors.AdapterUnsupported),
    "loftq": ({"loftq_config": {"loftq_bits": 4}}, errors.AdapterUnsupported),
    "corda": ({"init_lora_weights": "corda"}, errors.AdapterUnsupported),
    "pissa by iterations": ({"init_lora_weights": "pissa_niter_16"}, errors.AdapterUnsupported),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, errors.AdapterUnsupported),
    "a start that is a number": ({"init_lora_weights": 1}, errors.AdapterUnsupported),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "error"), LIES.values(), ids=LIES.keys())
def test_a_lying_config_is_refused(fields: dict[str, Any], error: type[errors.AdapterError]) -> None:
    with pytest.raises(error) as refusal:
        packed(config_bytes(**fields), GOOD)
    assert len(refusal.value.message) < 500


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"\xff\xfe", b"{", b'{"r": 4, "r": 4}', b"null", b"{}", b" " * (2 << 20)]
)
def test_a_config_that_is_none_is_refused(config: bytes) -> None:
    with pytest.raises(errors.AdapterCorrupt):
        packed(config, GOOD)


HARMLESS: dict[str, dict[str, Any]] = {
    "labels": {"task_type": "CAUSAL_LM", "peft_version": "0.99", "revision": "main", "auto_mapping": {"a": "os"}},
    "training settings": {"lora_dropout": 0.5, "inference_mode": True, "megatron_core": "x", "eva_config": {"rho": 2}},
    "modules in other words": {
        "target_modules": "all-linear",
        "exclude_modules": "no_such",
        "layer_replication": [],
    },
    "unknown fields at their default": {"use_future": False, "future_config": None, "futures": [], "future": {}},
    "empty features": {"modules_to_save": [], "trainable_token_indices": {}, "loftq_config": {}, "bias": "all"},
    "fields of other tools": {"unsloth_fixed": True, "runtime_config": {"ephemeral_gpu_offload": True}},
    "another base's name": {"base_model_name_or_path": "someone/else"},
}  # fmt: skip


@pytest.mark.parametrize("fields", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_changes_nothing_is_accepted_and_leaves_the_digest_alone(fields: dict[str, Any]) -> None:
    assert packed(config_bytes(**fields), GOOD).digest == packed(config_bytes(), GOOD).digest


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("served", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused(value: float, part: str, dtype: str, served: str) -> None:
    tensors = lora_tensors()
    for name, (_, shape, data) in tensors.items():
        values = np.frombuffer(data, dtype="<f4").copy()
        values[7] = value if name == name_of(1, 2, part) else values[7]
        raw = values.astype("<f2").tobytes() if dtype == "F16" else values.tobytes()
        raw = values.view("<u2")[1::2].tobytes() if dtype == "BF16" else raw
        tensors[name] = (dtype, shape, raw)
    with pytest.raises(
        errors.AdapterCorrupt, match=rf"lora_{part} of model\.layers\.1\.self_attn\.v_proj is not finite"
    ):
        packed(config_bytes(), safetensors_bytes(tensors), dtype=served)


def test_an_overflow_made_by_folding_or_rounding_is_refused() -> None:
    tensors = lora_tensors()
    tensors[name_of(0, 0, "B")] = as_f32(np.full((HIDDEN, 4), 3.4e38))
    for alpha, served in ((64, "float32"), (4, "bfloat16")):
        with pytest.raises(errors.AdapterCorrupt, match="not finite"):
            packed(config_bytes(lora_alpha=alpha), safetensors_bytes(tensors), dtype=served)


def test_ties_are_rounded_to_even() -> None:
    bits = np.resize(
        np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF7F7FFF, 0x00008000], dtype=np.uint32), (4, HIDDEN)
    )
    tensors = {name_of(0, 0, "A"): as_f32(bits.view(np.float32)), name_of(0, 0, "B"): as_f32(np.ones((HIDDEN, 4)))}
    body = packed(config_bytes(), safetensors_bytes(tensors), dtype="bfloat16").body
    expected = [0x3F80, 0x3F82, 0x3F81, 0xBF7F, 0x0000]
    assert np.frombuffer(body, dtype=np.uint16)[:5].tolist() == expected


def test_an_adapter_that_would_change_nothing_is_flagged() -> None:
    assert not packed(config_bytes(), GOOD).changes_nothing
    assert packed(config_bytes(lora_alpha=0), GOOD).changes_nothing


def test_bytes_over_the_limit_are_refused() -> None:
    with pytest.raises(errors.AdapterTooLarge, match=f"needs {len(GOOD)} bytes; the limit is 1000"):
        check_adapter(config_bytes(), memoryview(GOOD), TINY, AdapterLimits(max_rank=64, max_bytes=1000), REFUSE)


# ── the digest ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_order_metadata_and_dtype_do_not_change_the_digest() -> None:
    tensors = lora_tensors()
    for name, (_, shape, data) in tensors.items():  # values that bfloat16 holds exactly
        bits = np.frombuffer(data, dtype="<u4") & 0xFFFF0000
        tensors[name] = ("F32", shape, bits.astype("<u4").tobytes())
    first = packed(config_bytes(), safetensors_bytes(tensors)).digest
    narrow = {
        name: ("BF16", shape, np.frombuffer(data, "<u2")[1::2].tobytes()) for name, (_, shape, data) in tensors.items()
    }
    backwards = dict(reversed(tensors.items()))
    assert packed(config_bytes(), safetensors_bytes(backwards, {"format": "pt"})).digest == first
    assert packed(config_bytes(), safetensors_bytes(narrow)).digest == first
    swapped = json.dumps(dict(reversed(json.loads(config_bytes()).items()))).encode()
    assert packed(swapped, safetensors_bytes(tensors)).digest == first


def test_content_changes_the_digest() -> None:
    flipped = bytearray(GOOD)
    flipped[-3] ^= 1
    other_base = type(TINY)(**{**TINY.to_json(), "projections": TINY.projections, "fingerprint": "cd" * 32})
    digests = [
        packed(config_bytes(), GOOD).digest,
        packed(config_bytes(lora_alpha=9), GOOD).digest,
        packed(config_bytes(use_rslora=True), GOOD).digest,
        packed(config_bytes(alpha_pattern={"k_proj": 1}), GOOD).digest,
        packed(config_bytes(), bytes(flipped)).digest,
        packed(config_bytes(), GOOD, shape=other_base).digest,
    ]
    assert len(set(digests)) == len(digests)


# ── mutations ────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = lora_tensors(rank=2, projections=(0,))
SMALL_FILE = safetensors_bytes(SMALL)
SMALL_HEADER = json.loads(SMALL_FILE[8 : 8 + int.from_bytes(SMALL_FILE[:8], "little")])
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    1e308,
    "",
    "F32",
    "I64",
    [],
    [0],
    [2, 32],
    [32, 2],
    [0, 256],
    {},
    {"a": 1},
]


def flip(data: bytearray, chance: random.Random) -> bytes:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flip_header(data: bytearray, chance: random.Random) -> bytes:
    data[chance.randrange(8 + len(json.dumps(SMALL_HEADER)))] = chance.randrange(256)
    return bytes(data)


def cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def insert(data: bytearray, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return bytes(data[:at]) + chance.randbytes(chance.randrange(1, 40)) + bytes(data[at:])


def duplicate_span(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return bytes(data[: start + 64]) + bytes(data[start:])


def new_length(data: bytearray, chance: random.Random) -> bytes:
    data[:8] = chance.choice([0, 1, 2, 7, 100, 1 << 20, 1 << 32, (1 << 64) - 1]).to_bytes(8, "little")
    return bytes(data)


def odd_field(_: bytearray, chance: random.Random) -> bytes:
    header = json.loads(json.dumps(SMALL_HEADER))
    header[chance.choice(list(header))][chance.choice(["dtype", "shape", "data_offsets", "more"])] = chance.choice(ODD)
    return with_header(header, SMALL_FILE[8 + len(json.dumps(SMALL_HEADER)) :])


def odd_entry(_: bytearray, chance: random.Random) -> bytes:
    header = {**SMALL_HEADER, chance.choice([*SMALL_HEADER, "__metadata__", "x"]): chance.choice(ODD)}
    return with_header(header, SMALL_FILE[8 + len(json.dumps(SMALL_HEADER)) :])


def drop_tensor(_: bytearray, chance: random.Random) -> bytes:
    tensors = dict(SMALL)
    del tensors[chance.choice(list(tensors))]
    return safetensors_bytes(tensors)


def swap_shapes(_: bytearray, chance: random.Random) -> bytes:
    tensors = dict(SMALL)
    name = chance.choice(list(tensors))
    dtype, shape, data = tensors[name]
    tensors[name] = (dtype, chance.choice([shape[::-1], (*shape, 1), (64,), (1, *shape)]), data)
    return safetensors_bytes(tensors)


def rename_tensor(_: bytearray, chance: random.Random) -> bytes:
    tensors = dict(SMALL)
    name = chance.choice(list(tensors))
    at = chance.randrange(len(name))
    tensors[name[:at] + chance.choice(["", ".", "..", "0", "9", "lora_A", "é", "\n"]) + name[at:]] = tensors.pop(name)
    return safetensors_bytes(tensors)


def random_bytes(_: bytearray, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(200))


def special_numbers(data: bytearray, chance: random.Random) -> bytes:
    at = (
        8
        + len(json.dumps(SMALL_HEADER))
        + 4 * chance.randrange(SMALL_HEADER[name_of(0, 0, "A")]["data_offsets"][1] // 4)
    )
    data[at : at + 4] = np.float32(chance.choice([math.nan, math.inf, 1e38, 1e-45, -0.0])).tobytes()
    return bytes(data)


MUTATIONS: list[Callable[[bytearray, random.Random], bytes]] = [
    flip, flip_header, cut, insert, duplicate_span, new_length, odd_field, odd_entry, drop_tensor, swap_shapes,
    rename_tensor, random_bytes, special_numbers,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_mutated_file_never_crashes(mutate: Callable[[bytearray, random.Random], bytes]) -> None:
    chance = random.Random(mutate.__name__)
    config = config_bytes(r=2)
    for _ in range(300):
        weights = mutate(bytearray(SMALL_FILE), chance)
        try:
            adapter = packed(config, weights, dtype="bfloat16")
        except errors.AdapterError:
            continue
        bits = np.frombuffer(adapter.body, dtype=np.uint16)
        assert not ((bits & 0x7F80) == 0x7F80).any()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "trainable_token_indices",
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
    "layer_replication",
    "loftq_config",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "unheard_of",
    "use_dora",
    "use_rslora",
]


@settings(max_examples=3 * settings().max_examples)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_config_is_applied_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(errors.AdapterError):
        check_adapter(config_bytes(**fields), memoryview(GOOD), TINY, LIMITS, REFUSE)
