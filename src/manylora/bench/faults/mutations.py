"""Structural mutations of adapter files, with which the ingest is fuzzed.

A number alone determines a mutant, so that a failure can be repeated: all randomness comes from a seeded `Random`.
"""

import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np

from manylora.bench.faults.adapter_files import HIDDEN, LAYERS, Fields, Files, seeds

# ── values of wrong places ───────────────────────────────────────────────────────────────────────────────────────

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**40, 0.5, 2.0, 1e308, -0.0,
    "", "F32", "I64", "8", "x" * 1000, "\0", "é\u202e", [], [0], [1, 2], [[[]]], {}, {"a": 1}, {"r": {"r": 8}},
]  # fmt: skip
NOT_NUMBERS = (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-0", b"00", b"1.", b"0x10", b"1_0", b"9" * 6000)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I8", "I64", "BOOL", "f32", "", "F32 ", "C64")
CONTAINERS = (
    b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",  # a pickle that would call os.system
    b"PK\x03\x04" + bytes(26),
    b"PK\x05\x06" + bytes(18),
    b"\x7fELF\x02\x01\x01",
    b"\x1f\x8b\x08\0",
    b"BZh91AY&SY",
    b"\xfd7zXZ\0",
    b"GGUF\x03\0\0\0",
    b"\x93NUMPY\x01\0",
    b"\x89HDF\r\n\x1a\n",
    b"adapter_config.json".ljust(257, b"\0") + b"ustar\0",
    b"#!/bin/sh\n",
    b"version https://git-lfs.github.com/spec/v1\n",
)
PATTERNS = (
    "(a+)+$", "(a|a)*b", "(.*)(.*)(.*)b", r"(q)\1", "(?=q)q_proj", "q_proj|k_proj", ".*", "", "^", "$", "(", "[",
    "{1,}", "a{1,65535}", "(?P<x>q)", "(?i)Q_PROJ", "q" * 300, "[[a]", "\\", r"layers\.\d+\..*", "q_proj$",
    "^q_proj", "x?" * 60, "(((((((q_proj)))))))", "\n", "ſ", "model.layers.0.self_attn.q_proj", "((a|b)|(c|d))" * 9,
)  # fmt: skip
CONFIG_FIELDS = (
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "target_modules", "use_dora",
    "modules_to_save", "init_lora_weights", "layer_replication", "loftq_config", "layers_to_transform", "lora_bias",
    "trainable_token_indices", "alora_invocation_tokens", "target_parameters", "base_model_name_or_path",
    "fan_in_fan_out", "exclude_modules", "auto_mapping", "unheard_of",
)  # fmt: skip


def _tensor(header: Fields, chance: Random) -> str:
    return chance.choice([name for name in header if name != "__metadata__"])


def _flip(data: bytes, chance: Random, first: int, stop: int) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        changed[chance.randrange(first, stop)] ^= 1 << chance.randrange(8)
    return bytes(changed)


# ── kinds of mutation ────────────────────────────────────────────────────────────────────────────────────────────


def flip_body(files: Files, chance: Random) -> Files:
    return files.with_weights(_flip(files.weights, chance, len(files.weights) - len(files.body), len(files.weights)))


def flip_header(files: Files, chance: Random) -> Files:
    return files.with_weights(_flip(files.weights, chance, 8, len(files.weights) - len(files.body)))


def flip_length(files: Files, chance: Random) -> Files:
    return files.with_weights(_flip(files.weights, chance, 0, 8))


def flip_config(files: Files, chance: Random) -> Files:
    return files.with_config(_flip(files.config, chance, 0, len(files.config)))


def header_byte(files: Files, chance: Random) -> Files:
    changed = bytearray(files.weights)
    changed[chance.randrange(8, len(changed) - len(files.body))] = chance.choice([*b'[]{}",:-.eE0\\\0 \xff\x80'])
    return files.with_weights(bytes(changed))


def truncated(files: Files, chance: Random) -> Files:
    return files.with_weights(files.weights[: chance.randrange(len(files.weights))])


def truncated_config(files: Files, chance: Random) -> Files:
    return files.with_config(files.config[: chance.randrange(len(files.config))])


def inserted(files: Files, chance: Random) -> Files:
    at = chance.choice([chance.randrange(len(files.weights)), len(files.weights)])
    return files.with_weights(files.weights[:at] + chance.randbytes(chance.randrange(1, 64)) + files.weights[at:])


def repeated_span(files: Files, chance: Random) -> Files:
    start = chance.randrange(len(files.weights))
    return files.with_weights(files.weights[: start + chance.randrange(1, 4096)] + files.weights[start:])


def claimed_length(files: Files, chance: Random) -> Files:
    own = int.from_bytes(files.weights[:8], "little")
    claimed = chance.choice([0, 1, 2, own - 1, own + 1, 1 << 20, (1 << 20) + 1, 1 << 32, 1 << 63, (1 << 64) - 1])
    return files.with_weights(claimed.to_bytes(8, "little") + files.weights[8:])


def padded_header(files: Files, chance: Random) -> Files:
    text = json.dumps(files.header, indent=chance.choice([None, 1, 8])).encode()
    space = chance.choice([b" ", b"\n", b"\t", b"\0", b"\x0c"])
    before = space * chance.choice([0, 0, 1, 100])
    return files.with_header(before + text + space * chance.choice([0, 1, 7, 1000]))


def odd_offsets(files: Files, chance: Random) -> Files:
    header = files.header
    entry = header[_tensor(header, chance)]
    start, stop = entry["data_offsets"]
    entry["data_offsets"] = chance.choice(
        [
            [start - 1, stop - 1], [start + 4, stop + 4], [stop, start], [start, stop, stop], [start],
            [0, stop - start], [float(start), float(stop)], [start, stop - 4], [start, stop + 4], [-start, stop],
            [str(start), stop], [start + 2**64, stop + 2**64], [2**62, 2**62 + stop - start], [start, None],
            [True, stop], chance.choice(ODD),
        ]
    )  # fmt: skip
    return files.with_header(header)


def odd_shape(files: Files, chance: Random) -> Files:
    header = files.header
    entry = header[_tensor(header, chance)]
    shape = entry["shape"]
    entry["shape"] = chance.choice(
        [
            shape[::-1], [*shape, 1], [1, *shape], [math.prod(shape)], [*shape, 0], [2**32, 2**32], [2**62, 4, 0],
            [-shape[0], -shape[-1]], [float(side) for side in shape], [1] * 300, [str(side) for side in shape],
            [side * 2 for side in shape], [], [True, *shape], chance.choice(ODD),
        ]
    )  # fmt: skip
    return files.with_header(header)


def odd_dtype(files: Files, chance: Random) -> Files:
    header = files.header
    header[_tensor(header, chance)]["dtype"] = chance.choice([*DTYPES, *ODD])
    return files.with_header(header)


def another_dtype(files: Files, chance: Random) -> Files:
    """Return the files with all tensors in another dtype of as many bytes, which may be right."""
    header = files.header
    dtype = chance.choice(["F16", "BF16", "F32"])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = dtype
    return files.with_header(header)


def odd_entry(files: Files, chance: Random) -> Files:
    header = files.header
    entry = header[_tensor(header, chance)]
    if chance.random() < 0.3:
        del entry[chance.choice(list(entry))]
    else:
        entry[chance.choice([*entry, "offset", "strides", "", "__class__"])] = chance.choice(ODD)
    return files.with_header(header)


def odd_table(files: Files, chance: Random) -> Files:
    header = files.header
    header[chance.choice([*header, "x", ""])] = chance.choice(ODD)
    return files.with_header(chance.choice([header, header, header, chance.choice(ODD)]))


def metadata(files: Files, chance: Random) -> Files:
    flood = {f"k{number}": "v" * 10 for number in range(chance.choice([100, 40_000]))}
    odd = {"format": chance.choice(ODD), "\ud800": "x"}
    return files.with_header({**files.header, "__metadata__": chance.choice([flood, odd, "pt" * 400_000, *ODD])})


def many_tensors(files: Files, chance: Random) -> Files:
    count = chance.choice([50, 2_000, 12_000, 20_000])
    end = len(files.body)
    name = chance.choice(["t{}", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.w{}"])
    shape = chance.choice([[0], [], [0, 0, 0, 0]])
    extra = {
        name.format(number): {"dtype": "F32", "shape": shape, "data_offsets": [end, end]} for number in range(count)
    }
    return files.with_header({**files.header, **extra})


def many_layers(files: Files, chance: Random) -> Files:
    """Return the files with well-formed names of layers that the base lacks."""
    end = len(files.body)
    extra = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight": {
            "dtype": "F32",
            "shape": [0, HIDDEN] if part == "A" else [HIDDEN, 0],
            "data_offsets": [end, end],
        }
        for layer in range(LAYERS, LAYERS + chance.choice([1, 100, 4_000]))
        for part in "AB"
    }
    return files.with_header({**files.header, **extra})


def duplicate_key(files: Files, chance: Random) -> Files:
    text = json.dumps(files.header)
    name = chance.choice([_tensor(files.header, chance), "__metadata__"])
    again = chance.choice([json.dumps(files.header[name]), "{}", "1", "null"])
    return files.with_header(f"{text[:-1]}, {json.dumps(name)}: {again}}}".encode())


def renamed(files: Files, chance: Random) -> Files:
    header = files.header
    name = _tensor(header, chance)
    at = chance.randrange(len(name))
    inserted_text = chance.choice(["", ".", "..", "/", "\0", "0", "9", "lora_A", "é", "\n", "\ud800", "٣", "default."])
    new = chance.choice(
        [
            name[:at] + inserted_text + name[at + chance.randrange(3) :], name.replace(".layers.0", ".layers.00"),
            name.replace("lora_A", "lora_B"), name.upper(), name * 500, "", "__metadata__ ",
            name.replace(".layers.0.", f".layers.{10 ** chance.randrange(1, 30)}."), name.removesuffix(".weight"),
            name.replace(".weight", ".bias"), f"{name}.modules_to_save.weight",
            name.replace("q_proj", chance.choice(["k_proj", "x_proj", "experts.0"])),
            "base_model.model.lm_head.weight", "base_model.model.model.norm.weight",
            "base_model.model.lm_head.original_module.weight", "base_model.model.model.embed_tokens.lora_embedding_A",
        ]
    )  # fmt: skip
    return files.with_header({(new if key == name else key): entry for key, entry in header.items()})


def dropped_tensor(files: Files, chance: Random) -> Files:
    """Return the files without some tensors. The rest stays dense, so that only the missing ones can be wrong."""
    header, body = files.header, b""
    gone = set(chance.sample([name for name in header if name != "__metadata__"], chance.choice([1, 1, 2, 3])))
    kept: Fields = {}
    for name, entry in header.items():
        if name == "__metadata__" or name in gone:
            continue
        start, stop = entry["data_offsets"]
        kept[name] = {**entry, "data_offsets": [len(body), len(body) + stop - start]}
        body += files.body[start:stop]
    return files.with_header(kept, body)


def exchanged_data(files: Files, chance: Random) -> Files:
    """Return the files with two tensors' bytes exchanged: wrong if their sizes differ, else another adapter."""
    header = files.header
    one, two = (header[_tensor(header, chance)] for _ in range(2))
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    return files.with_header(header)


def shared_data(files: Files, chance: Random) -> Files:
    header = files.header
    one, two = (header[_tensor(header, chance)] for _ in range(2))
    one["data_offsets"] = two["data_offsets"]
    return files.with_header(header)


def another_rank(files: Files, chance: Random) -> Files:
    """Return the files with consistent weights of another rank; the config has that rank or not."""
    header, body = files.header, b""
    rank = chance.choice([0, 1, 3, 16, 64, 65])
    for name, entry in header.items():
        if name == "__metadata__" or len(entry["shape"]) != 2:
            continue
        shape = [rank, entry["shape"][1]] if ".lora_A" in name else [entry["shape"][0], rank]
        entry.update(dtype="F32", shape=shape)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        data = np.ones(entry["shape"], dtype="<f4").tobytes() if entry["dtype"] == "F32" else b""
        entry["data_offsets"] = [len(body), len(body) + len(data)]
        body += data
    says = {**files.fields, "r": rank} if chance.random() < 0.7 else files.fields
    return files.with_header(header, body).with_config(says)


def deep_nesting(files: Files, chance: Random) -> Files:
    depth = chance.choice([5, 900, 1_100, 20_000, 200_000])
    opening, closing = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    deep = opening * depth + b"1" + closing * chance.choice([depth, 0])
    if chance.random() < 0.5:
        return files.with_config(b'{"peft_type": "LORA", "eva_config": ' + deep + b"}")
    return files.with_header(chance.choice([deep, b'{"a":' + deep + b"}", b'{"__metadata__":' + deep + b"}"]))


def not_a_number(files: Files, chance: Random) -> Files:
    number = chance.choice(NOT_NUMBERS)
    if chance.random() < 0.5:
        field = chance.choice(["r", "lora_alpha", "lora_dropout"])
        text = json.dumps({**files.fields, field: "HERE"}).encode()
        return files.with_config(text.replace(b'"HERE"', number))
    header = files.header
    header[_tensor(header, chance)][chance.choice(["shape", "data_offsets"])][0] = "HERE"
    return files.with_header(json.dumps(header).encode().replace(b'"HERE"', number))


def broken_text(files: Files, chance: Random) -> Files:
    """Return the files with malformed text: no UTF-8, invalid escapes, surrogates, a byte-order mark, UTF-16."""
    wrong = chance.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\\x41", b"\x00", b"\x1f"])
    text = chance.choice([files.config, json.dumps(files.header).encode()])
    at = text.index(b'"') + 1 + chance.randrange(3)
    text = chance.choice([text[:at] + wrong + text[at:], b"\xef\xbb\xbf" + text, text.decode().encode("utf-16")])
    return files.with_config(text) if chance.random() < 0.5 else files.with_header(text)


def another_container(files: Files, chance: Random) -> Files:
    start = chance.choice(CONTAINERS)
    rest = chance.choice([b"", files.weights, files.weights[len(start) :], bytes(1000)])
    return files.with_weights(start + rest)


def swapped_files(files: Files, chance: Random) -> Files:
    other = chance.choice(seeds())
    return chance.choice(
        [
            Files(files.name, files.weights, files.config),
            Files(files.name, files.config, files.config),
            Files(files.name, other.config, files.weights),
            Files(files.name, b"", files.weights),
            Files(files.name, files.config, b""),
        ]
    )


def random_files(files: Files, chance: Random) -> Files:
    noise = chance.randbytes(chance.randrange(300))
    return files.with_config(noise) if chance.random() < 0.5 else files.with_weights(noise)


def special_values(files: Files, chance: Random) -> Files:
    """Return the files with NaN, infinity, or the largest and smallest numbers of a tensor's dtype in the body."""
    header = files.header
    entry = header[_tensor(header, chance)]
    values = {
        "F32": [0x7FC00000, 0x7F800001, 0xFF800000, 0x7F7FFFFF, 0x7F7F8000, 0x00000001, 0x80000000, 0x7E967699],
        "BF16": [0x7FC0, 0x7F81, 0xFF80, 0x7F7F, 0x0001, 0x8000, 0x7E96],
        "F16": [0x7E00, 0x7C01, 0xFC00, 0x7BFF, 0x0001, 0x8000],
    }[entry["dtype"]]
    item = 4 if entry["dtype"] == "F32" else 2
    start, stop = entry["data_offsets"]
    body = bytearray(files.body)
    for _ in range(chance.choice([1, 3, 50])):
        at = start + item * chance.randrange((stop - start) // item)
        body[at : at + item] = chance.choice(values).to_bytes(item, "little")
    alpha = chance.choice([files.fields["lora_alpha"], 1e6, 0, 1e-40])
    return files.with_header(header, bytes(body)).with_config({**files.fields, "lora_alpha": alpha})


def config_value(files: Files, chance: Random) -> Files:
    return files.with_config({**files.fields, chance.choice(CONFIG_FIELDS): chance.choice(ODD)})


def config_values(files: Files, chance: Random) -> Files:
    return files.with_config(
        {**files.fields, **{name: chance.choice(ODD) for name in chance.sample(CONFIG_FIELDS, 4)}, "peft_type": "LORA"}
    )


def config_form(files: Files, chance: Random) -> Files:
    text = files.config
    forms = [b"", b"null", b"[]", b'"x"', b"1", text + text, text[:-1] + b', "r": 4}', b" " * (1 << 20) + text]
    return files.with_config(chance.choice([*forms, b"// x\n" + text, text[:-1] + b",}", text.replace(b'"', b"'")]))


def hostile_patterns(files: Files, chance: Random) -> Files:
    table = chance.choice(["rank_pattern", "alpha_pattern"])
    keys = [chance.choice(PATTERNS) for _ in range(chance.choice([1, 2, 20]))]
    if chance.random() < 0.3:
        form = chance.choice(["x{}", "[x-z]{}", ".*{}", "model.layers.{}.self_attn.q_proj", "a?b?c?{}", "x{{1,{}}}"])
        keys += [form.format(number) for number in range(chance.choice([30, 1_000, 5_000, 30_000]))]
    value = files.fields["r"] if table == "rank_pattern" else chance.choice([1, 0.5, 0])
    return files.with_config({**files.fields, table: {**dict.fromkeys(keys, value), "q_proj": value}})


def large_config(files: Files, chance: Random) -> Files:
    name = chance.choice(CONFIG_FIELDS)
    size = chance.choice([100_000, 900_000, 1_100_000])
    table = {str(number): number for number in range(size // 16)}
    value = chance.choice(["x" * size, list(range(size // 8)), table, ["q"] * (size // 5)])
    return files.with_config({**files.fields, name: value})


Mutation = Callable[[Files, Random], Files]
KINDS: tuple[Mutation, ...] = (
    flip_body, flip_header, flip_length, flip_config, header_byte, truncated, truncated_config, inserted, repeated_span,
    claimed_length, padded_header, odd_offsets, odd_shape, odd_dtype, another_dtype, odd_entry, odd_table, metadata,
    many_tensors, many_layers, duplicate_key, renamed, dropped_tensor, exchanged_data, shared_data, another_rank,
    deep_nesting, not_a_number, broken_text, another_container, swapped_files, random_files, special_values,
    config_value, config_values, config_form, hostile_patterns, large_config,
)  # fmt: skip
"""The structural kinds of mutation; a mutant's number selects one."""


def mutant(series: int, number: int, start: Sequence[Files]) -> tuple[str, Files]:
    """Return the mutant of that number in a series, with the name of its kind. Some mutants are mutated twice."""
    chance = Random(f"{series}:{number}")
    kind = KINDS[number % len(KINDS)]
    files = kind(chance.choice(start), chance)
    if chance.random() < 0.15:
        files = chance.choice((flip_config, config_value, truncated))(files, chance) if _is_whole(files) else files
    return kind.__name__, files


def _is_whole(files: Files) -> bool:
    """Return whether a second mutation can still read the files."""
    try:
        return isinstance(json.loads(files.config), dict) and len(files.weights) > 0
    except (ValueError, RecursionError):
        return False
