"""The text files beside a tokenizer.json: their names, and the tokens, chat templates and ends that a base has in them.

An adapter's files have the same forms; `adapters/text/` compares them with those of its base.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.spec import read_json
from manylora.models.text.adapter_text import AddedToken

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON_FILE = "chat_template.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FOLDER, _TEMPLATE_ENDING = "additional_chat_templates", ".jinja"
TOKENIZER_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE)
TEMPLATE_FILES = (TEMPLATE_FILE, TEMPLATE_JSON_FILE, TOKENIZER_CONFIG_FILE)
"""Files that may contain the chat template. The first that exists counts."""
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
_SENTENCEPIECE_FILE = "tokenizer.model"

Json = dict[str, Any]  # JSON values of several types


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFiles:
    """The content of a base's text files beside its tokenizer.json.

    named      special tokens by name, `bos_token` and its like: the variables of chat templates
    listed     added tokens of tokenizer_config.json by id; their flags win over those of tokenizer.json
    templates  chat templates by name; `default` is the one without a name
    """

    named: Mapping[str, str]
    listed: Mapping[int, AddedToken]
    templates: Mapping[str, str] = field(repr=False)


def read_base_files(directory: Path) -> BaseFiles:
    """Read a base's text files; absent ones say nothing. Raises `ModelUnsupported` with the malformed file.

    Source: the order of transformers. special_tokens_map.json wins over a tokenizer_config.json without
    `added_tokens_decoder`, and counts for nothing beside one with it.
    """
    settings = _object(directory / TOKENIZER_CONFIG_FILE)
    special = {} if "added_tokens_decoder" in settings else _object(directory / SPECIAL_TOKENS_FILE)
    try:
        listed = {token.id: token for token in decoder_tokens(settings)}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        file = directory / TOKENIZER_CONFIG_FILE
        raise ModelUnsupported(f"{file}: `added_tokens_decoder` has an entry that is no token") from error
    return BaseFiles(
        named={**named_texts(settings), **named_texts(special)},
        listed=listed,
        templates=_templates(directory, settings),
    )


def missing_tokenizer(directory: Path) -> ModelNotFound:
    """Return the error for a base without tokenizer.json, with the command that makes one of a tokenizer.model."""
    if not (directory / _SENTENCEPIECE_FILE).is_file():
        return ModelNotFound(f"{directory} has no {TOKENIZER_FILE}; fetch the model again")
    return ModelNotFound(
        f"{directory} has {_SENTENCEPIECE_FILE} and no {TOKENIZER_FILE}. Make it once, in any environment with "
        'transformers: pip install transformers sentencepiece protobuf && python -c "import transformers; '
        f"transformers.AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')\""
    )


def end_ids(named_by_config: tuple[int, ...], own: int | None) -> tuple[int, ...]:
    """Return the tokens that end a generation, ascending: those of the model's configuration and the tokenizer's own.

    Source: vLLM ends at both. A chat model whose configuration is that of its base ends its turns with the latter.
    """
    return tuple(sorted({*named_by_config, *ids_of(own)}))


# ── forms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def named_templates(value: object) -> dict[str, str]:
    """Return the templates of a `chat_template`: a text, or a list of texts with names.

    Raises `TypeError` or `KeyError` for any other value.
    """
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else (value or [])
    if not isinstance(entries, list):
        raise TypeError
    return {str(entry["name"]): entry["template"] for entry in entries}


def ids_of(token_id: int | None) -> tuple[int, ...]:
    return () if token_id is None else (token_id,)


def _templates(directory: Path, settings: Json) -> dict[str, str]:
    """Return the templates of the first place that has one.

    Files of their own replace every template of tokenizer_config.json, also if none of them is the default: as in
    transformers.
    """
    files = {"default": directory / TEMPLATE_FILE} if (directory / TEMPLATE_FILE).is_file() else {}
    more = sorted((directory / TEMPLATE_FOLDER).glob(f"*{_TEMPLATE_ENDING}"))
    files |= {file.name.removesuffix(_TEMPLATE_ENDING): file for file in more}
    if files:
        return {name: _text(file) for name, file in files.items()}
    is_separate = (directory / TEMPLATE_JSON_FILE).is_file()
    file = directory / (TEMPLATE_JSON_FILE if is_separate else TOKENIZER_CONFIG_FILE)
    value = (read_json(file) if is_separate else settings).get("chat_template")
    try:
        found = named_templates(value)
    except (TypeError, KeyError) as error:
        raise ModelUnsupported(f"{file}: `chat_template` is neither a text nor a list of named ones") from error
    if not all(isinstance(text, str) for text in found.values()):
        raise ModelUnsupported(f"{file}: `chat_template` has a template that is no text")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"cannot read {file}: {error}; fetch the model again") from error


def _object(file: Path) -> Json:
    return read_json(file) if file.is_file() else {}
