"""The tensors of a base model: their names, shapes and bits by the spec, the check of its files, and its fingerprint.

Imports without torch.
"""

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from manylora.errors import ModelUnsupported
from manylora.kernels.projections import EXPERT_NAMES, FEED_FORWARD, Projection
from manylora.kernels.storage_form import StorageForm
from manylora.models.checkpoints.four_bits import stacked_four_bits
from manylora.models.checkpoints.gptq import GptqMatrix
from manylora.models.checkpoints.quantization import read_scheme
from manylora.models.checkpoints.quantized import with_quantized
from manylora.models.checkpoints.safetensors_file import read_header_bytes
from manylora.models.checkpoints.shards import listed, read_shards, weight_files
from manylora.models.checkpoints.stored import FLOATS, DenseTensor, StoredTensor, widened
from manylora.models.expert_tensors import expert_path, mixture_shapes, separate_experts
from manylora.models.gguf.parts import named_as_part, part_files
from manylora.models.gguf.tensors import read_gguf
from manylora.models.spec import ModelSpec, read_json

_SAMPLE_BYTES = 1 << 20
_METADATA_BYTES = 1 << 24  # of a GGUF file, whose vocabulary takes some megabytes

ATTENTION_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
Q_NORM, K_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
GGUF_NAME = "model.gguf"
"""The name of a GGUF file, or of a link to it or to the first part of a model, in a base's directory."""
EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


FUSED = tuple(dict.fromkeys(projection.fused for projection in Projection))
"""The names of the fused products."""


def block_tensor(layer: int, path: str) -> str:
    """Return the checkpoint's name of a tensor by its path inside a block."""
    return f"model.layers.{layer}.{path}"


def block_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a block but those of its mixture, by its path inside the block."""
    shapes: dict[str, tuple[int, ...]] = {ATTENTION_NORM: (spec.hidden,), MLP_NORM: (spec.hidden,)}
    for projection in Projection:
        if spec.experts is not None and projection in FEED_FORWARD:
            continue
        shapes[f"{projection.path}.weight"] = projection.shape(spec)
        if projection.fused in spec.biased:
            shapes[f"{projection.path}.bias"] = projection.shape(spec)[:1]
    if spec.has_head_norms:
        shapes |= dict.fromkeys((Q_NORM, K_NORM), (spec.head_dim,))
    return shapes


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the model needs, by checkpoint name."""
    block = block_shapes(spec) | mixture_shapes(spec)
    shapes: dict[str, tuple[int, ...]] = {EMBED: (spec.vocab, spec.hidden), FINAL_NORM: (spec.hidden,)}
    if not spec.tie_embeddings:
        shapes[HEAD] = (spec.vocab, spec.hidden)
    for layer in range(spec.num_layers):
        shapes |= {block_tensor(layer, path): shape for path, shape in block.items()}
    return shapes


def fused_weights(spec: ModelSpec, layer: int, name: str) -> list[tuple[str, ...]]:
    """Return the checkpoint's names of the parts of each matrix of a fused product: one matrix, or one an expert."""
    own = [projection for projection in Projection if projection.fused == name]
    if spec.experts is None or own[0] not in FEED_FORWARD:
        return [tuple(block_tensor(layer, f"{projection.path}.weight") for projection in own)]
    experts = range(spec.experts.count)
    return [tuple(block_tensor(layer, expert_path(expert, p)) for p in EXPERT_NAMES if p in own) for expert in experts]


def read_entries(directory: Path) -> Mapping[str, StoredTensor]:
    """Return every tensor of a base's files by name, each expert's for itself.

    Raises `ModelNotFound` or `ModelUnsupported` for bad files.
    """
    if is_gguf(directory):
        return read_gguf(_gguf_file(directory))
    tensors = read_shards(directory)
    scheme = read_scheme(_config(directory))
    return separate_experts(tensors) if scheme is None else with_quantized(tensors, scheme)


def _config(directory: Path) -> Mapping[str, Any]:
    file = directory / "config.json"
    return read_json(file) if file.is_file() else {}


def is_gguf(directory: Path) -> bool:
    """Return whether a base's weights are a GGUF file. Raises `ModelUnsupported` for one beside safetensors."""
    found = sorted(file.name for file in directory.glob("*.gguf"))
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if found and others:
        raise ModelUnsupported(
            f"{directory} has {others[0]} and {found[0]}: move the one that is not meant, or give the path of the "
            "GGUF file"
        )
    return found == [GGUF_NAME]


def _gguf_file(directory: Path) -> Path:
    """Return the GGUF file of a base under the name that its other parts are found by."""
    file = directory / GGUF_NAME
    return named_as_part(directory / file.readlink() if file.is_symlink() else file)


def checked_entries(directory: Path, spec: ModelSpec) -> Mapping[str, StoredTensor]:
    """Return every tensor of a base's files, compared with the spec. Reads headers alone, and raises as they do."""
    entries = read_entries(directory)
    check_entries(entries, spec)
    return entries


def storage_formats(entries: Mapping[str, StoredTensor]) -> str:
    """Return the storage formats of a base's tensors, that of the most bytes first: `BF16`, or `GPTQ int4, F16`."""
    sizes: Counter[str] = Counter()
    for entry in entries.values():
        sizes[entry.dtype] += entry.num_bytes
    return ", ".join(name for name, _ in sizes.most_common())


def form_with_stored(form: StorageForm, spec: ModelSpec, entries: Mapping[str, StoredTensor]) -> StorageForm:
    """Return the form with the mean bits of a checkpoint's matrices, of which those in four bits may stay as they are.

    Args:  entries  of the whole base; headers are read, and zero points of matrices in four bits
    """
    if not form.keeps_four_bits or form.quantises_to_four_bits:
        return form
    bits, count, is_kept = 0.0, 0, False
    for layer in range(spec.num_layers):
        for parts in (parts for name in FUSED for parts in fused_weights(spec, layer, name)):
            matrices = [entries[part] for part in parts]
            own = sum(math.prod(matrix.shape) for matrix in matrices)
            stacked = stacked_four_bits(matrices, quantises=False)
            bits += own * form.weight_bits if stacked is None else 8.0 * stacked.num_bytes
            count, is_kept = count + own, is_kept or stacked is not None
    return replace(form, weight_bits=bits / count, is_widened=True) if is_kept else form


def check_entries(entries: Mapping[str, StoredTensor], spec: ModelSpec) -> None:
    """Compare names, shapes and dtypes with the spec. Raises `ModelUnsupported` with the differences."""
    expected = expected_shapes(spec)
    # Old files carry the rotary frequencies; files of a tied model may carry the head a second time.
    ignored = {name for name in entries if name.endswith("rotary_emb.inv_freq")} | (
        {HEAD} if spec.tie_embeddings else set()
    )
    if missing := sorted(expected.keys() - entries.keys()):
        raise ModelUnsupported(f"the checkpoint lacks {listed(missing)}")
    unexpected = sorted(entries.keys() - expected.keys() - ignored)
    if unexpected := [name for name in unexpected if not _is_empty_bias(name, entries)]:
        raise ModelUnsupported(f"the checkpoint has tensors this architecture does not use: {listed(unexpected)}")
    for name, shape in expected.items():
        entry = entries[name]
        if entry.shape != shape:
            raise ModelUnsupported(f"{name} in {entry.file.name} has shape {entry.shape}; config.json means {shape}")
        if isinstance(entry, DenseTensor) and entry.dtype not in FLOATS:
            raise ModelUnsupported(f"{name} in {entry.file.name} is {entry.dtype}; supported: {', '.join(FLOATS)}")


def _is_empty_bias(name: str, entries: Mapping[str, StoredTensor]) -> bool:
    """Return whether a tensor is a bias of zeros beside quantised weights, as older GPTQ files have them."""
    weight = entries.get(f"{name.removesuffix('.bias')}.weight")
    if not name.endswith(".bias") or not isinstance(weight, GptqMatrix):
        return False
    bias = entries[name]
    return bias.dtype in FLOATS and len(bias.shape) == 1 and not widened(bias.rows(0, bias.shape[0])).any()


def fingerprint(directory: Path, spec: ModelSpec) -> str:
    """Return 64 hex digits that name this base: adapters are packed for, and cached under, one fingerprint.

    SHA-256 over the spec, the quantisation and, for each safetensors file, its size, header, and first and last MiB;
    for each part of a GGUF model, its size, first 16 MiB and last MiB. Reading all of a large base takes minutes; a
    changed weight in the middle of a file of unchanged size and ends is not seen. That suffices to distinguish bases,
    and is no defence against a forged base.
    """
    digest = hashlib.sha256(json.dumps(_facts(spec), sort_keys=True).encode())
    if (quantization := _config(directory).get("quantization_config")) is not None:
        digest.update(json.dumps(quantization, sort_keys=True).encode())
    if is_gguf(directory):
        for part in part_files(_gguf_file(directory)):
            if part.exists():  # a whole model may have the name of a part
                _update(digest, part, b"", 0, _METADATA_BYTES)
    else:
        for file in weight_files(directory):
            header, _ = read_header_bytes(file)
            _update(digest, file, header, 8 + len(header), _SAMPLE_BYTES)
    return digest.hexdigest()


def _facts(spec: ModelSpec) -> dict[str, Any]:  # values of several types
    """Return the spec's fields but those with their default, so that a new field changes no older fingerprint."""
    facts = asdict(spec)
    return {own.name: facts[own.name] for own in fields(spec) if facts[own.name] != own.default}


def _update(digest: "hashlib._Hash", file: Path, header: bytes, start: int, first_bytes: int) -> None:
    """Add a file's size, its header, and the first and the last bytes of its content from `start` on."""
    size = file.stat().st_size
    digest.update(struct.pack("<QQ", size, len(header)))
    digest.update(header)
    with file.open("rb") as stream:
        stream.seek(start)
        digest.update(stream.read(first_bytes))
        stream.seek(max(size - _SAMPLE_BYTES, start))
        digest.update(stream.read(_SAMPLE_BYTES))
