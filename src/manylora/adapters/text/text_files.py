"""An adapter's text files, compared with the base's. Allowed differences become an `AdapterText`, others are refused.

Nothing of an adapter runs here: its tokenizer.json is read as JSON, no regular expression in it is compiled, and no
template is parsed. The size of the base's own file bounds the work and the memory.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from manylora.adapters.refusals import Refusals, shown
from manylora.adapters.text.base_text import (
    COMPARED,
    MAX_FILE_BYTES,
    BaseText,
    affixes_of,
    count_values,
    section_hash,
    special_values,
    whole_number,
)
from manylora.errors import ManyloraError
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.models.text.adapter_text import (
    MAX_END_IDS,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    MAX_TEMPLATE_BYTES,
    MAX_TEMPLATES,
    MAX_TOKEN_BYTES,
    AdapterText,
    AddedToken,
)
from manylora.models.text.token_files import (
    ADDED_TOKENS_FILE,
    FLAGS,
    GENERATION_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Json,
    as_object,
    ids_of,
    named_templates,
    named_texts,
    token_of,
    token_text,
)

MAX_CHECKED = 16
_MOST_VALUES_FACTOR, _MORE_VALUES = 4, 1 << 16
"""Limit on the JSON values in a tokenizer.json, as a factor and a surplus over the base's.

A merge may be one text or a list of two.
"""


def read_adapter_text(
    files: Mapping[str, bytes], base: BaseText, refuse: Refusals, checked: dict[str, Json] | None = None
) -> AdapterText:
    """Return the differences of one adapter's text files from the base's.

    Args:    files    the content of each existing file, by name
             checked  the extract of each tokenizer.json that was read before, by its hash: most adapters of a base
                      have the same one
    Raises:  an `AdapterError` that names the file and its fault
    """
    return _Reader(files, base, refuse, {} if checked is None else checked).read()


class _Reader:
    """The conversion of one adapter's files to an `AdapterText`."""

    def __init__(self, files: Mapping[str, bytes], base: BaseText, refuse: Refusals, checked: dict[str, Json]) -> None:
        self._files = files
        self._base = base
        self._refuse = refuse
        self._checked = checked

    def read(self) -> AdapterText:
        settings = self._json(TOKENIZER_CONFIG_FILE)
        special = {} if "added_tokens_decoder" in settings else self._json(SPECIAL_TOKENS_FILE)
        template_ids: Json | None = None
        tokens = self._listed_tokens(settings)
        if TOKENIZER_FILE in self._files:
            content = self._tokenizer_json()
            own = [self._token(TOKENIZER_FILE, entry) for entry in self._list(TOKENIZER_FILE, content, "added_tokens")]
            listed = {token.id: token for token in own}
            wins = "added_tokens_decoder" in settings
            tokens = {**listed, **tokens} if wins else {**tokens, **listed}
            self._check_base_tokens(tokens)
            template_ids = content
        tokens = self._with_named(tokens, {**settings, **special})
        new = self._new_tokens(tokens)
        known = {**self._base.pieces, **{token.content: token.id for token in new}}
        named = {**named_texts(settings), **named_texts(special)}
        leading, trailing = self._affixes(template_ids, settings, named, known)
        end_ids, stop_strings = self._ends(named, known)
        templates = self._templates(settings)
        return AdapterText(
            tokens=new,
            changed=tuple(token for id_, token in sorted(tokens.items()) if self._base.added.get(id_, token) != token),
            named={name: text for name, text in named.items() if self._base.named.get(name) != text},
            templates={} if self._is_of_base(templates) else templates,
            end_ids=end_ids,
            stop_strings=stop_strings,
            leading=leading,
            trailing=trailing,
        )

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _tokenizer_json(self) -> Json:
        """Parse tokenizer.json, which is large, and compare it with the base's. Return a small extract."""
        key = hashlib.sha256(self._files[TOKENIZER_FILE]).hexdigest()
        if (known := self._checked.pop(key, None)) is None:
            known = self._parsed_tokenizer()
        self._checked[key] = known  # the last used extract stands last
        if len(self._checked) > MAX_CHECKED:
            del self._checked[next(iter(self._checked))]
        return known

    def _parsed_tokenizer(self) -> Json:
        most = _MOST_VALUES_FACTOR * self._base.num_values + _MORE_VALUES
        if (count := count_values(self._files[TOKENIZER_FILE])) > most:
            raise self._refuse.corrupt(f"{TOKENIZER_FILE} has {count} values, over {most}")
        content = self._json(TOKENIZER_FILE)
        for name, called in COMPARED.items():
            try:
                is_same = section_hash(content, name) == self._base.sections[name]
            except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
                raise self._refuse.corrupt(f"the {called} in {TOKENIZER_FILE} is not one") from error
            if not is_same:
                raise self._refuse.incompatible(f"the {called} in its {TOKENIZER_FILE} differs from the base's")
        return {name: content.get(name) for name in ("added_tokens", "post_processor")}

    def _listed_tokens(self, settings: Json) -> dict[int, AddedToken]:
        """Return the tokens of tokenizer_config.json or, in older folders, of added_tokens.json."""
        if "added_tokens_decoder" in settings:
            entries = self._dict(TOKENIZER_CONFIG_FILE, settings, "added_tokens_decoder")
            tokens = [
                self._token(
                    TOKENIZER_CONFIG_FILE, {**entry, "id": whole_number(key)} if isinstance(entry, dict) else entry
                )
                for key, entry in entries.items()
            ]
            return {token.id: token for token in tokens}
        found = {}
        for content, token_id in self._json(ADDED_TOKENS_FILE).items():
            entry = {"id": token_id, "content": content, "normalized": True}
            # A token of the base keeps the flags that the base gives it.
            known = self._base.added.get(token_id) if isinstance(token_id, int) else None
            token = self._token(ADDED_TOKENS_FILE, entry)
            found[token.id] = known if known is not None and known.content == content else token
        return found

    def _token(self, file: str, entry: object) -> AddedToken:
        try:
            token = token_of(as_object(entry))
            num_bytes = len(token.content.encode())
        except (TypeError, KeyError, ValueError) as error:
            raise self._refuse.corrupt(f"{file} has an added token that is none") from error
        if not 0 < num_bytes <= MAX_TOKEN_BYTES:
            raise self._refuse.incompatible(
                f"an added token in {file} has {num_bytes} bytes; from 1 to {MAX_TOKEN_BYTES} are allowed"
            )
        return token

    def _check_base_tokens(self, tokens: Mapping[int, AddedToken]) -> None:
        for token_id, token in self._base.added.items():
            if token_id not in tokens or tokens[token_id].content != token.content:
                raise self._refuse.incompatible(
                    f"token {token_id} of the base, `{shown(token.content)}`, is not in its {TOKENIZER_FILE}"
                )

    def _with_named(self, tokens: Mapping[int, AddedToken], settings: Json) -> dict[int, AddedToken]:
        """Add the special tokens that are named and not listed, as transformers adds them."""
        found = dict(tokens)
        texts = {*self._base.pieces, *(token.content for token in tokens.values())}
        next_id = max(self._base.next_id, max(tokens, default=-1) + 1)
        for value in special_values(settings):
            content = token_text(value)
            if content is None or content in texts:
                continue
            flags = {name: bool(value.get(name)) for name in FLAGS} if isinstance(value, dict) else {}
            entry = {**flags, "id": next_id, "content": content, "special": True}
            found[next_id] = self._token(TOKENIZER_CONFIG_FILE, entry)
            texts.add(content)
            next_id += 1
        return found

    def _new_tokens(self, tokens: Mapping[int, AddedToken]) -> tuple[AddedToken, ...]:
        """Return the tokens that the base lacks.

        Raises an `AdapterError` for one that takes a base token's id or text.
        """
        base = self._base
        new: list[AddedToken] = []
        contents: set[str] = set()
        for token_id, token in sorted(tokens.items()):
            if token_id in base.added and base.added[token_id].content == token.content:
                continue
            spelled = shown(token.content)
            if token_id in base.ids:
                raise self._refuse.incompatible(f"its token `{spelled}` has the id {token_id} of a token of the base")
            if token.content in base.pieces or token.content in contents:
                whose = "of the base" if token.content in base.pieces else "of its own"
                raise self._refuse.incompatible(f"its token `{spelled}` has the text of another token {whose}")
            if len(new) >= MAX_ADDED_TOKENS:
                raise self._refuse.incompatible(f"it adds more than {MAX_ADDED_TOKENS} tokens")
            if token_id != base.next_id + len(new):
                raise self._refuse.incompatible(
                    f"its token `{spelled}` has the id {token_id} where {base.next_id + len(new)} comes next"
                )
            contents.add(token.content)
            new.append(token)
        return tuple(new)

    def _affixes(
        self, content: Json | None, settings: Json, named: Mapping[str, str], known: Mapping[str, int]
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Return the tokens put before and after a text; None for those that are as in the base."""
        flags = [settings.get("add_bos_token"), settings.get("add_eos_token")]
        if any(flag is not None for flag in flags):
            # An explicit setting wins over the post-processor, as in transformers.
            texts = [{**self._base.named, **named}.get(name, "") for name in ("bos_token", "eos_token")]
            before, after = [ids_of(known.get(text) if flag else None) for flag, text in zip(flags, texts, strict=True)]
            return self._unless_base((before, after))
        if content is None or section_hash(content, "post_processor") == self._base.post_processor:
            return None, None
        try:
            return self._unless_base(affixes_of(content["post_processor"], frozenset(known.values())))
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
            raise self._refuse.unsupported(f"a post-processor in {TOKENIZER_FILE} that is not a plain template") from (
                error
            )

    def _unless_base(
        self, sides: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        return (None, None) if sides == self._base.affixes else sides

    # ── templates and ends ───────────────────────────────────────────────────────────────────────────────────────

    def _templates(self, settings: Json) -> dict[str, str]:
        if TEMPLATE_FILE in self._files:
            return {"default": self._text(TEMPLATE_FILE, self._files[TEMPLATE_FILE])}
        source = TEMPLATE_JSON_FILE if TEMPLATE_JSON_FILE in self._files else TOKENIZER_CONFIG_FILE
        value = (self._json(source) if source == TEMPLATE_JSON_FILE else settings).get("chat_template")
        try:
            found = named_templates(value)
        except (TypeError, KeyError) as error:
            raise self._refuse.corrupt(f"`chat_template` in {source} is neither a text nor a list of them") from error
        num_bytes = sum(len(self._encoded(source, text)) + len(self._encoded(source, n)) for n, text in found.items())
        if num_bytes > MAX_TEMPLATE_BYTES or len(found) > MAX_TEMPLATES:
            raise self._refuse.too_large(num_bytes, MAX_TEMPLATE_BYTES)
        return found

    def _is_of_base(self, templates: Mapping[str, str]) -> bool:
        """Return whether chat with the adapter uses the base's template; a base may have more, with names."""
        return templates == self._base.templates or (
            "default" in templates and templates["default"] == self._base.templates.get("default")
        )

    def _ends(
        self, named: Mapping[str, str], known: Mapping[str, int]
    ) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
        """Return the end tokens and stop strings of generation_config.json.

        If it names no end token, the ends are the tokenizer's own end token, if it differs, and the base's.
        """
        settings = self._json(GENERATION_FILE)
        given = settings.get("eos_token_id")
        ends = self._base.end_ids
        if given is not None:
            listed = given if isinstance(given, list) else [given]
            ids = set(known.values())
            ends = tuple(dict.fromkeys(end for end in listed if type(end) is int and end in ids))
            if len(listed) > MAX_END_IDS or len(ends) < len({repr(end) for end in listed[:MAX_END_IDS]}):
                raise self._refuse.incompatible(f"`eos_token_id` in {GENERATION_FILE} names no tokens of its tokenizer")
        elif (text := named.get("eos_token")) in known and text != self._base.named.get("eos_token"):
            ends = tuple(dict.fromkeys((*ends, known[text or ""])))
        stops = settings.get("stop_strings") or []
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list) or len(stops) > MAX_STOP_STRINGS:
            raise self._refuse.unsupported(f"`stop_strings` in {GENERATION_FILE} other than {MAX_STOP_STRINGS} texts")
        for stop in stops:
            if not 0 < len(self._encoded(GENERATION_FILE, stop)) <= MAX_STOP_STRING_BYTES:
                raise self._refuse.unsupported(
                    f"a stop string in {GENERATION_FILE} that is empty or has over {MAX_STOP_STRING_BYTES} bytes"
                )
        return None if set(ends) == set(self._base.end_ids) else ends, tuple(dict.fromkeys(stops))

    # ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _json(self, name: str) -> Json:
        """Return a file as a JSON object; an empty object if the file does not exist."""
        if name not in self._files:
            return {}
        try:
            content = json.loads(self._files[name])
        except (ValueError, RecursionError) as error:
            raise self._refuse.corrupt(f"{name} is not JSON") from error
        if not isinstance(content, dict):
            raise self._refuse.corrupt(f"{name} is not a JSON object")
        return content

    def _list(self, file: str, content: Json, name: str) -> list[Any]:
        value = content.get(name) or []
        if not isinstance(value, list) or len(value) > len(self._base.added) + MAX_ADDED_TOKENS:
            raise self._refuse.incompatible(f"`{name}` in {file} is no list of the base's and {MAX_ADDED_TOKENS} more")
        return value

    def _dict(self, file: str, content: Json, name: str) -> Json:
        value = content.get(name) or {}
        if not isinstance(value, dict) or len(value) > len(self._base.added) + MAX_ADDED_TOKENS:
            raise self._refuse.incompatible(
                f"`{name}` in {file} has not the base's and {MAX_ADDED_TOKENS} more at most"
            )
        return value

    def _text(self, file: str, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._refuse.corrupt(f"{file} is not UTF-8") from error

    def _encoded(self, file: str, text: object) -> bytes:
        if not isinstance(text, str):
            raise self._refuse.corrupt(f"{file} has a {type(text).__name__} where a text is expected")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise self._refuse.corrupt(f"{file} has a text with half a character") from error


def merged_text(texts: Iterable[AdapterText]) -> AdapterText:
    """Return the text of merged adapters: the one that all members share, or the base's where they differ."""
    first, *others = texts
    return first if all(other == first for other in others) else AdapterText()


def check_text_size(name: str, num_bytes: int, refuse: Refusals) -> ManyloraError | None:
    """Return the refusal of a text file that is too large, or None."""
    limit = MAX_FILE_BYTES[name]
    return refuse.too_large(num_bytes, limit) if num_bytes > limit else None
