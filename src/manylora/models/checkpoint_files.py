"""A base model's safetensors files: their headers, checked against the spec, and the base's fingerprint.

Imports without torch. The header of a safetensors file is 8 bytes of length (little-endian) and that many of JSON.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.kernels.projections import Projection
from manylora.models.spec import ModelSpec, read_json

_MAX_HEADER_BYTES = 100_000_000  # the format's own bound
_SAMPLE_BYTES = 1 << 20
_FLOATS = ("BF16", "F16", "F32")
_SHOWN = 5  # names listed in an error before "and N more"

ATTENTION_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
Q_NORM, K_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """One tensor of a checkpoint: the file it is in, its dtype as safetensors spells it, its shape, its first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def block_tensor(layer: int, path: str) -> str:
    """Return the checkpoint's name of a tensor by its path inside a block."""
    return f"model.layers.{layer}.{path}"


def block_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a block, by its path inside the block."""
    shapes: dict[str, tuple[int, ...]] = {ATTENTION_NORM: (spec.hidden,), MLP_NORM: (spec.hidden,)}
    for projection in Projection:
        shapes[f"{projection.path}.weight"] = projection.shape(spec)
        if projection.fused in spec.biased:
            shapes[f"{projection.path}.bias"] = projection.shape(spec)[:1]
    if spec.has_head_norms:
        shapes |= dict.fromkeys((Q_NORM, K_NORM), (spec.head_dim,))
    return shapes


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the model needs, by checkpoint name."""
    block = block_shapes(spec)
    shapes: dict[str, tuple[int, ...]] = {EMBED: (spec.vocab, spec.hidden), FINAL_NORM: (spec.hidden,)}
    if not spec.tie_embeddings:
        shapes[HEAD] = (spec.vocab, spec.hidden)
    for layer in range(spec.num_layers):
        shapes |= {block_tensor(layer, path): shape for path, shape in block.items()}
    return shapes


def read_entries(directory: Path) -> dict[str, CheckpointTensor]:
    """Return every tensor of the model's files: `model.safetensors`, or the shards its index names."""
    entries: dict[str, CheckpointTensor] = {}
    for file in weight_files(directory):
        for name, (dtype, shape, start) in _read_header(file).items():
            if name in entries:
                raise ModelUnsupported(f"{name} is in {entries[name].file.name} and again in {file.name}")
            entries[name] = CheckpointTensor(file, dtype, shape, start)
    return entries


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Return the safetensors files, sorted by name. Raises `ModelNotFound` with the name of a missing one."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        return (single,)
    if not index.is_file():
        pickled = sorted(file.name for file in directory.glob("*.bin"))
        hint = f"; {pickled[0]} is pickled and never opened: convert it to safetensors" if pickled else ""
        raise ModelNotFound(f"{directory} has neither {single.name} nor {index.name}{hint}")
    names = sorted(set(map(str, read_json(index).get("weight_map", {}).values())))
    for name in names:
        if Path(name).name != name:
            raise ModelUnsupported(f"{index} names a file outside its directory: {name!r}")
        if not (directory / name).is_file():
            raise ModelNotFound(f"{directory} lacks {name}, which {index.name} names; fetch the model again")
    if not names:
        raise ModelUnsupported(f"{index} names no files")
    return tuple(directory / name for name in names)


def check_entries(entries: dict[str, CheckpointTensor], spec: ModelSpec) -> None:
    """Compare names, shapes and dtypes with the spec. Raises `ModelUnsupported` with the differences."""
    expected = expected_shapes(spec)
    # Old files carry the rotary frequencies; files of a tied model may carry the head a second time.
    ignored = {name for name in entries if name.endswith("rotary_emb.inv_freq")} | (
        {HEAD} if spec.tie_embeddings else set()
    )
    if missing := sorted(expected.keys() - entries.keys()):
        raise ModelUnsupported(f"the checkpoint lacks {_listed(missing)}")
    if unexpected := sorted(entries.keys() - expected.keys() - ignored):
        raise ModelUnsupported(f"the checkpoint has tensors this architecture does not use: {_listed(unexpected)}")
    for name, shape in expected.items():
        entry = entries[name]
        if entry.shape != shape:
            raise ModelUnsupported(f"{name} in {entry.file.name} has shape {entry.shape}; config.json means {shape}")
        if entry.dtype not in _FLOATS:
            raise ModelUnsupported(f"{name} in {entry.file.name} is {entry.dtype}; supported: {', '.join(_FLOATS)}")


def fingerprint(directory: Path, spec: ModelSpec) -> str:
    """Return 64 hex digits that name this base: adapters are packed for, and cached under, one fingerprint.

    SHA-256 over the spec and, for each safetensors file, its size, header, and first and last MiB. Reading all of a
    large base takes minutes; a changed weight in the middle of a file of unchanged size and ends is not seen. That
    suffices to distinguish bases, and is no defence against a forged base.
    """
    digest = hashlib.sha256(json.dumps(_facts(spec), sort_keys=True).encode())
    for file in weight_files(directory):
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = _header_length(file, stream.read(8))
            digest.update(struct.pack("<QQ", size, length))
            digest.update(stream.read(length))
            digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(size - _SAMPLE_BYTES, 8 + length))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _facts(spec: ModelSpec) -> dict[str, Any]:  # values of several types
    """Return the spec's fields but those with their default, so that a new field changes no older fingerprint."""
    facts = asdict(spec)
    return {own.name: facts[own.name] for own in fields(spec) if facts[own.name] != own.default}


def _read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    with file.open("rb") as stream:
        raw = stream.read(_header_length(file, stream.read(8)))
    try:
        header = json.loads(raw)
        found = {
            name: (
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                int(entry["data_offsets"][0]),
                int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelUnsupported(f"{file} is not a safetensors file: {error}") from error
    body = 8 + len(raw)
    end = body + max((stop for _, _, _, stop in found.values()), default=0)
    if file.stat().st_size != end:
        raise ModelUnsupported(f"{file} has {file.stat().st_size} bytes, its header says {end}; fetch the model again")
    return {name: (dtype, shape, body + start) for name, (dtype, shape, start, _) in found.items()}


def _header_length(file: Path, first: bytes) -> int:
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER_BYTES, file.stat().st_size - 8):
        raise ModelUnsupported(f"{file} is not a safetensors file, or was cut short; fetch the model again")
    return int(length)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
