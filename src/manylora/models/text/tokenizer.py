"""The tokenizer of one base model: text to token ids and back, and chat messages to a prompt.

Imports without torch: the HTTP edge tokenises. Reads tokenizer.json and the files of `token_files.py`.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as _LibraryToken
from tokenizers import Tokenizer as _Library

from manylora.clock import Clock
from manylora.errors import ModelUnsupported, TemplateFailed
from manylora.models.spec import read_json, read_spec
from manylora.models.text.adapter_text import AdapterText, AddedToken
from manylora.models.text.detokenizer import TokenStream, TokenTexts
from manylora.models.text.template import ChatTemplate, cut_last, open_last
from manylora.models.text.token_files import FLAGS, TOKENIZER_FILE, end_ids, missing_tokenizer, read_base_files

log = logging.getLogger(__name__)

_MAX_SHOWN_TOKEN = 40


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One token of a text: its id, its piece as the vocabulary spells it, and its part of the text, `text[start:stop]`.

    `start` and `stop` count characters (code points); tokens that the tokenizer adds by itself have `start == stop`.
    """

    token_id: int
    piece: str
    start: int
    stop: int


class Tokenizer:
    """A base model's tokenizer. Immutable after construction: any number of threads may use one object."""

    def __init__(
        self, directory: Path, *, model_id: str = "", chat_template: str = "", clock: Clock | None = None
    ) -> None:
        """Load from a base model's directory.

        Args:    model_id       the model's name in messages; empty: the folder's name
                 chat_template  the default template in place of the base's own; empty: its own
        Raises:  `ModelNotFound` for a missing tokenizer.json, `ModelUnsupported` for one that cannot be used, or that
                 has more tokens than the base has rows, added tokens apart
        """
        file = directory / TOKENIZER_FILE
        if not file.is_file():
            raise missing_tokenizer(directory)
        content, files = read_json(file), read_base_files(directory)
        self._library = _with_listed(_loaded(file, content), tuple(files.listed.values()), file)
        self.model_id = model_id or directory.name
        self._take_added()
        self._texts = TokenTexts(self._library, content.get("decoder"))
        self._named = files.named
        self._affixes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        spec = read_spec(directory) if (directory / "config.json").is_file() else None
        if spec is not None:
            self._check_rows(file, spec.vocab)
        self.eos_ids = end_ids(spec.eos_token_ids if spec else (), self.token_id(self._named.get("eos_token", "")))
        templates = {**files.templates, **({"default": chat_template} if chat_template else {})}
        self._template_texts = templates
        self._templates = {name: _compiled(directory, name, text, clock) for name, text in templates.items()}

    def with_text(self, text: AdapterText) -> "Tokenizer":
        """Return this tokenizer with an adapter's changes; both share the vocabulary, the merges and the templates.

        Takes under a millisecond, and memory for the added tokens alone. The templates stay the base's: another
        process renders an adapter's own. Raises `ModelUnsupported` if a token does not get the id in the text.
        """
        own = copy.copy(self)
        own._named = {**self._named, **text.named}
        if text.leading is not None or text.trailing is not None:
            own._affixes = (text.leading or (), text.trailing or ())
        if text.end_ids is not None:
            own.eos_ids = text.end_ids
        if text.tokens or text.changed:
            own._library = _with_tokens(self._library, text)
            own._take_added()
            own._texts = self._texts.with_library(own._library)
        return own

    def with_added(self, tokens: tuple[AddedToken, ...]) -> "Tokenizer":
        """Return this tokenizer with the texts of further tokens, which it decodes and does not encode."""
        if not tokens:
            return self
        own = copy.copy(self)
        own._texts = self._texts.with_added({token.id: token.content for token in tokens})
        specials = frozenset(token.id for token in tokens if token.special)
        own.special_ids = self.special_ids.difference(token.id for token in tokens) | specials
        return own

    def to_json(self, added: tuple[AddedToken, ...] = ()) -> str:
        """Return the text of a tokenizer.json with these tokens and further ones, for other libraries.

        Raises `ModelUnsupported` if a token does not get its id.
        """
        library = _with_tokens(self._library, AdapterText(tokens=added)) if added else self._library
        text: str = library.to_str()
        return text

    def _take_added(self) -> None:
        added = self._library.get_added_tokens_decoder()
        self.vocab_size = self._library.get_vocab_size(with_added_tokens=True)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """Variables that chat templates may read: `bos_token` and its like."""
        return self._named

    @property
    def has_chat_template(self) -> bool:
        return "default" in self._templates

    @property
    def tool_template(self) -> str:
        """The text of the chat template that shows tools; empty: the base has no template."""
        return self._template_texts.get("tool_use") or self._template_texts.get("default", "")

    def special_id(self, piece: str) -> int | None:
        """Return the id of a special token by its name; None for text that is none."""
        found = self.token_id(piece)
        return found if found in self.special_ids else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`; special tokens spelled out in it are recognised.

        `add_special_tokens` adds the tokens that lead or end a text by the model's files (for many, `<s>`). Prompts of
        `apply_chat_template` have them already.
        """
        is_own = self._affixes is not None and add_special_tokens
        ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens and not is_own).ids
        return ids if self._affixes is None or not is_own else [*self._affixes[0], *ids, *self._affixes[1]]

    def spans(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        """Return the tokens of `text` with their pieces and positions."""
        is_own = self._affixes is not None and add_special_tokens
        found = self._library.encode(text, add_special_tokens=add_special_tokens and not is_own)
        spans = [
            TokenSpan(token_id, piece, start, stop)
            for token_id, piece, (start, stop) in zip(found.ids, found.tokens, found.offsets, strict=True)
        ]
        if self._affixes is None or not is_own:
            return spans
        before, after = ([TokenSpan(id_, self.piece(id_) or "", 0, 0) for id_ in side] for side in self._affixes)
        return [*before, *spans, *after]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`. Ids outside the vocabulary have no text."""
        text: str = self._library.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def stream(
        self, *, skip_special_tokens: bool = True, continues: bool = False, shown: frozenset[int] = frozenset()
    ) -> TokenStream:
        """Return a fresh incremental detokeniser.

        `continues`: its tokens follow a prompt, so that the space before the first word is kept; else the stream equals
        `decode` of all its ids. `shown`: special tokens that are not skipped.
        """
        skipped = self.special_ids - shown if skip_special_tokens else frozenset()
        return TokenStream(self._texts, skipped, continues=continues)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes this token adds to a text; may be part of a character. Empty for an unknown id."""
        return self._texts.of(token_id)

    def token_text(self, token_id: int) -> str:
        """Return the token by itself as text, its leading space kept; a part of a character shows as U+FFFD."""
        return self._texts.of(token_id).decode(errors="replace")

    def piece(self, token_id: int) -> str | None:
        """Return the token as the vocabulary spells it (`Ġhello`, `▁hello`), or None for an unknown id."""
        found: str | None = self._library.id_to_token(token_id)
        return found

    def token_id(self, piece: str) -> int | None:
        """Return the id of a piece as the vocabulary spells it, or None."""
        found: int | None = self._library.token_to_id(piece)
        return found

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt text of a conversation, to be encoded with `add_special_tokens=False`.

        Args:    continue_final_message, the prompt ends with the last message's content, whose turn stays open
                 tools, documents, passed to the template unchanged; variables, further names for it
        Raises:  `TemplateFailed` if the model has no template or the template refuses the messages
        """
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise TemplateFailed(f"model `{self.model_id}` has no chat template")
        text = template.render(
            {
                **self._named,
                **(variables or {}),
                "messages": open_last(messages) if continue_final_message else messages,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return cut_last(text, messages[-1]["content"]) if continue_final_message else text

    def _check_rows(self, file: Path, num_rows: int) -> None:
        """Check that each token has a row in the base.

        Added tokens may lack one: published bases have padding tokens like that. A prompt with such a token is refused.
        Raises `ModelUnsupported` for a token of the vocabulary itself: the tokenizer is another model's.
        """
        if shown := _beyond(self._library.get_vocab(with_added_tokens=False), num_rows):
            raise ModelUnsupported(
                f"{file}: {shown} in the base, which has {num_rows} rows (vocab_size in config.json). The tokenizer is "
                "another model's: serve the base that has these rows"
            )
        if shown := _beyond(self._library.get_vocab(with_added_tokens=True), num_rows):
            log.warning("tokenizer.added_tokens_without_rows detail=%s; a prompt with one is refused", shown)


def _beyond(ids: Mapping[str, int], num_rows: int) -> str:
    """Return the number of tokens without a row and the first of them as words; empty: each has a row."""
    beyond = {token_id: piece for piece, token_id in ids.items() if token_id >= num_rows}
    if not beyond:
        return ""
    first = min(beyond)
    count = "1 token has no row" if len(beyond) == 1 else f"{len(beyond)} tokens have no row"
    return f"{count} (the first is {beyond[first][:_MAX_SHOWN_TOKEN]!r}, with the id {first})"


def _loaded(file: Path, content: Mapping[str, Any]) -> _Library:
    try:
        library = _Library.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception
        raise ModelUnsupported(f"{file} cannot be loaded: {error}") from error
    library.no_truncation()
    library.no_padding()
    return library


def _with_listed(library: _Library, listed: Sequence[AddedToken], file: Path) -> _Library:
    """Return a library with the tokens and flags of tokenizer_config.json, which win over those of tokenizer.json."""
    added = library.get_added_tokens_decoder()
    for token in listed:
        if token.id in added and token.content != added[token.id].content:
            raise ModelUnsupported(
                f"{file} and tokenizer_config.json have two tokens with the id {token.id}: "
                f"{added[token.id].content[:_MAX_SHOWN_TOKEN]!r} and {token.content[:_MAX_SHOWN_TOKEN]!r}"
            )
    changed = [token for token in listed if token.id in added and not _is_same(token, added[token.id])]
    new = sorted((token for token in listed if token.id not in added), key=lambda token: token.id)
    if not changed and not new:
        return library
    try:
        return _with_tokens(library, AdapterText(tokens=tuple(new), changed=tuple(changed)))
    except ModelUnsupported as error:
        raise ModelUnsupported(f"{file} and tokenizer_config.json: {error.message}") from error


def _is_same(token: AddedToken, known: _LibraryToken) -> bool:
    return all(getattr(token, flag) == getattr(known, flag) for flag in FLAGS)


def _compiled(directory: Path, name: str, text: str, clock: Clock | None) -> ChatTemplate:
    try:
        return ChatTemplate(text, clock=clock)
    except TemplateFailed as error:
        raise ModelUnsupported(f"{directory}: the chat template `{name}` is not usable: {error.message}") from error


def _with_tokens(library: _Library, text: AdapterText) -> _Library:
    """Return a library over the same model, with the added tokens of the base and of the adapter."""
    own = _Library(library.model)
    own.no_truncation()
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(library, name)) is not None:
            setattr(own, name, part)
    changed = {token.id: _library_token(token) for token in text.changed}
    added = library.get_added_tokens_decoder()
    own.add_tokens([changed.get(token_id, added[token_id]) for token_id in sorted(added)])
    own.add_tokens([_library_token(token) for token in text.tokens])
    for token in text.tokens:
        if own.token_to_id(token.content) != token.id:
            raise ModelUnsupported(f"an added token has the id {own.token_to_id(token.content)}, not {token.id}")
    return own


def _library_token(token: AddedToken) -> _LibraryToken:
    return _LibraryToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
