"""The parts of the base's tokenizer that adapters are compared with, and the forms of text files on both sides."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.models.spec import read_spec
from manylora.models.text.adapter_text import MAX_END_IDS, MAX_TEMPLATE_BYTES, AddedToken

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON_FILE = "chat_template.json"
GENERATION_FILE = "generation_config.json"
MAX_FILE_BYTES = {
    TOKENIZER_FILE: 64 << 20,
    TOKENIZER_CONFIG_FILE: 2 << 20,
    ADDED_TOKENS_FILE: 1 << 20,
    SPECIAL_TOKENS_FILE: 1 << 20,
    TEMPLATE_FILE: MAX_TEMPLATE_BYTES,
    TEMPLATE_JSON_FILE: 4 * MAX_TEMPLATE_BYTES,
    GENERATION_FILE: 1 << 20,
}
TOKENIZER_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE)
TEMPLATE_FILES = (TEMPLATE_FILE, TEMPLATE_JSON_FILE, TOKENIZER_CONFIG_FILE)
"""Files that may contain the chat template. The first that exists counts."""
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
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

Json = dict[str, Any]  # JSON values of several types


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
        settings = _file_json(directory / TOKENIZER_CONFIG_FILE)
        vocabulary = _vocabulary(content["model"])
        added = {token.id: token for token in map(token_of, content.get("added_tokens") or ())}
        # The flags of the configuration win over those of the file, as in transformers.
        added |= {token.id: token for token in decoder_tokens(settings) if token.id in added}
        named = named_texts(settings)
        pieces = {**vocabulary, **{token.content: token.id for token in added.values()}}
        ends = read_spec(directory).eos_token_ids if (directory / "config.json").is_file() else ()
        own = pieces.get(named.get("eos_token", ""))
        return cls(
            sections={name: section_hash(content, name) for name in COMPARED},
            pieces=pieces,
            ids=frozenset(pieces.values()),
            added=added,
            next_id=max(len(vocabulary), max(added, default=-1) + 1),
            num_values=count_values(data),
            post_processor=section_hash(content, "post_processor"),
            affixes=_base_affixes(content, frozenset(pieces.values())),
            named=named,
            templates=_base_templates(directory, settings),
            end_ids=ends or (() if own is None else (own,)),
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


def token_of(entry: Json) -> AddedToken:
    """Return the added token of an entry. Raises `TypeError` or `KeyError` for a malformed entry."""
    token_id, content = entry["id"], entry["content"]
    if type(token_id) is not int or not isinstance(content, str):
        raise TypeError
    flags = {name: bool(entry.get(name)) for name in FLAGS if name != "normalized"}
    return AddedToken(
        id=token_id, content=content, **flags, normalized=bool(entry.get("normalized", not flags["special"]))
    )


def as_object(entry: object) -> Json:
    if not isinstance(entry, dict):
        raise TypeError
    return entry


def whole_number(key: str) -> int | None:
    return int(key) if key.isdecimal() and len(key) < len("4294967296") else None


def decoder_tokens(settings: Json) -> Iterator[AddedToken]:
    for key, entry in (settings.get("added_tokens_decoder") or {}).items():
        yield token_of({**entry, "id": int(key)})


def token_text(value: object) -> str | None:
    """Return the text of a token, which is a string or an object with its `content`; None for any other value."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def named_texts(settings: Json) -> dict[str, str]:
    found = {name: token_text(settings.get(name)) for name in NAMED_TOKENS}
    return {name: text for name, text in found.items() if text is not None}


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


def ids_of(token_id: int | None) -> tuple[int, ...]:
    return () if token_id is None else (token_id,)


def _base_affixes(content: Json, ids: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    try:
        return affixes_of(content.get("post_processor"), ids)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _file_json(file: Path) -> Json:
    return json.loads(file.read_bytes()) if file.is_file() else {}


def _base_templates(directory: Path, settings: Json) -> dict[str, str]:
    file = directory / TEMPLATE_FILE
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    named = settings.get("chat_template")
    if isinstance(named, str):
        return {"default": named}
    return {str(entry["name"]): str(entry["template"]) for entry in named or ()}
