"""The parts of the base's tokenizer that adapters are compared with, and forms of tokenizer.json on both sides."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.adapters.text.labels import LABELS_FILE
from manylora.models.spec import read_spec
from manylora.models.text.adapter_text import MAX_END_IDS, MAX_TEMPLATE_BYTES, AddedToken
from manylora.models.text.token_files import (
    ADDED_TOKENS_FILE,
    GENERATION_FILE,
    NAMED_TOKENS,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Json,
    as_object,
    end_ids,
    read_base_files,
    token_of,
)

MAX_FILE_BYTES = {
    TOKENIZER_FILE: 64 << 20,
    TOKENIZER_CONFIG_FILE: 2 << 20,
    ADDED_TOKENS_FILE: 1 << 20,
    SPECIAL_TOKENS_FILE: 1 << 20,
    TEMPLATE_FILE: MAX_TEMPLATE_BYTES,
    TEMPLATE_JSON_FILE: 4 * MAX_TEMPLATE_BYTES,
    GENERATION_FILE: 1 << 20,
    LABELS_FILE: 1 << 20,
}
COMPARED = {
    "model": "model",
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "decoder": "decoder",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ByteLevel": {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "Metaspace": {"split": True, "prepend_scheme": "always"},
}
_LISTED_PIECES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseText:
    """The parts of the base's tokenizer that adapters are compared with.

    sections     a hash of each part of tokenizer.json that an adapter may not change
    pieces, ids  the texts and ids of the model's vocabulary and of the added tokens
    next_id      the id of the next added token
    affixes      tokens that its post-processor puts before and after a text; None if the processor does anything else
    """

    sections: Mapping[str, str] = field(repr=False)
    pieces: Mapping[str, int] = field(repr=False)
    ids: frozenset[int] = field(repr=False)
    added: Mapping[int, AddedToken]
    next_id: int
    num_values: int
    post_processor: str
    affixes: tuple[tuple[int, ...], tuple[int, ...]] | None
    named: Mapping[str, str]
    templates: Mapping[str, str] = field(repr=False)
    end_ids: tuple[int, ...]

    @classmethod
    def read(cls, directory: Path) -> "BaseText":
        """Read the base's own files, which are trusted. Raises `OSError`, `ValueError`, `ModelUnsupported`."""
        data = (directory / TOKENIZER_FILE).read_bytes()
        content = json.loads(data)
        files = read_base_files(directory)
        vocabulary = _vocabulary(content["model"])
        added = {token.id: token for token in map(token_of, content.get("added_tokens") or ())}
        added.update(files.listed)
        pieces = {**vocabulary, **{token.content: token.id for token in added.values()}}
        ends = read_spec(directory).eos_token_ids if (directory / "config.json").is_file() else ()
        return cls(
            sections={name: section_hash(content, name) for name in COMPARED},
            pieces=pieces,
            ids=frozenset(pieces.values()),
            added=added,
            next_id=max(len(vocabulary), max(added, default=-1) + 1),
            num_values=count_values(data),
            post_processor=section_hash(content, "post_processor"),
            affixes=_base_affixes(content, frozenset(pieces.values())),
            named=files.named,
            templates=files.templates,
            end_ids=end_ids(ends, pieces.get(files.named.get("eos_token", ""))),
        )


# ── forms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def count_values(data: bytes) -> int:
    """Return an upper bound on the number of values in a JSON text: each but the first follows a `,`, `[` or `{`."""
    return 1 + data.count(b",") + data.count(b"[") + data.count(b"{")


def section_hash(content: Json, name: str) -> str:
    """Return a hash of one part of tokenizer.json that is equal for every release's spelling of it."""
    part = content.get(name)
    if name == "model":
        part = {**part, "merges": [_merge(merge) for merge in part.get("merges") or ()]} if part else part
    text = json.dumps(_canonical(part), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _merge(merge: object) -> object:
    return " ".join(merge) if isinstance(merge, list) and len(merge) == _LISTED_PIECES else merge


def _canonical(part: object) -> object:
    """Return a part with the defaults of its type written out, and without empty and renamed entries."""
    if isinstance(part, list):
        return [_canonical(one) for one in part] if any(isinstance(one, dict | list) for one in part) else part
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    filled = {**_DEFAULTS.get(kind, {}), **part} if isinstance(kind, str) else part
    if kind == "Metaspace":
        filled = {name: value for name, value in filled.items() if name not in ("str_rep", "add_prefix_space")}
        if "prepend_scheme" not in part and part.get("add_prefix_space") is False:
            filled["prepend_scheme"] = "never"
    kept = {name: value for name, value in filled.items() if value is not None and value is not False and value != ""}
    return {name: value if name == "vocab" else _canonical(value) for name, value in kept.items()}


def _vocabulary(model: Json) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def whole_number(key: str) -> int | None:
    return int(key) if key.isdecimal() and len(key) < len("4294967296") else None


def special_values(settings: Json) -> Iterator[object]:
    yield from (settings.get(name) for name in NAMED_TOKENS)
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(name)
        yield from more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()


def affixes_of(processor: object, known: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that a plain template puts before and after one text.

    Raises `ValueError`, `KeyError` or `TypeError` for any other processor.
    """
    if processor is None:
        return (), ()
    part = as_object(processor)
    if part["type"] == "ByteLevel":
        return (), ()
    if part["type"] == "Sequence":
        found = [affixes_of(one, known) for one in part["processors"][: _LISTED_PIECES + 1]]
        [(before, after)] = [pair for pair in found if pair != ((), ())] or [((), ())]
        return before, after
    if part["type"] != "TemplateProcessing" or len(part["single"]) > MAX_END_IDS:
        raise ValueError
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for piece in part["single"]:
        if "Sequence" in piece:
            if side or piece["Sequence"]["id"] != "A":
                raise ValueError
            side = 1
        else:
            sides[side].extend(part["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    if not side or not known.issuperset([*sides[0], *sides[1]]) or len(sides[0]) + len(sides[1]) > MAX_END_IDS:
        raise ValueError
    return tuple(sides[0]), tuple(sides[1])


def _base_affixes(content: Json, ids: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    try:
        return affixes_of(content.get("post_processor"), ids)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
