"""The text files of a model in a GGUF file, and its conversion to safetensors. Imports without torch."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.stored import StoredTensor, widened
from manylora.models.gguf.model import GgufFields, config_of
from manylora.models.gguf.parts import GgufModel, read_model
from manylora.models.gguf.tensors import read_gguf


def convert(file: Path, directory: Path, progress: Callable[[int, int], None]) -> None:
    """Write the model in `file` into `directory`, which exists and is empty, with bfloat16 weights.

    The words of its byte-level tokenizer are those of SmolLM, as files older than `tokenizer.ggml.pre` do not say.
    Args:    progress, called with (tensors done, tensors)
    Raises:  `ModelUnsupported` for another architecture, tokenizer or storage type
    """
    write_texts(read_model(file), directory, pre="smollm")
    _write_safetensors(directory / "model.safetensors", read_gguf(file), progress)


def write_texts(source: GgufModel, directory: Path, pre: str | None = None) -> None:
    """Write config.json, generation_config.json and the tokenizer's files, each unless it is there already.

    Raises `ModelUnsupported` with the field and the remedy, as `config_of` and `write_tokenizer` do.
    """
    from manylora.models.gguf.text import write_tokenizer  # here, because it loads the tokenizers library

    try:
        if not (directory / "config.json").exists():
            _write_config(directory, config_of(source))
        if not (directory / "tokenizer.json").exists():
            write_tokenizer(directory, GgufFields(source), pre)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise ModelUnsupported(f"{source.file}: a value has another type than its key means: {error}") from error


def _write_config(directory: Path, config: Mapping[str, Any]) -> None:
    _write_json(directory / "config.json", config)
    if not (directory / "generation_config.json").exists():
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        _write_json(directory / "generation_config.json", {name: config[name] for name in names if name in config})


def to_bfloat16(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of finite float32 values rounded to bfloat16, half to even."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    return ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)


def _write_safetensors(file: Path, tensors: Mapping[str, StoredTensor], progress: Callable[[int, int], None]) -> None:
    """Write bfloat16 tensors one by one; the format's own writer would hold all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        stop = offset + 2 * int(np.prod(tensor.shape))
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for done, tensor in enumerate(tensors.values(), start=1):
            stream.write(to_bfloat16(widened(tensor.rows(0, tensor.shape[0]))).tobytes())
            progress(done, len(tensors))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
