"""The tokens of an adapter, spelled by those of the base, so that the base's compiled grammars serve them, too.

A compiled grammar belongs to one vocabulary, which takes the interpreter's lock for a quarter of a second to open. A
text is in a grammar whatever tokens write it: an added token may come where the base's tokens of its text may.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manylora.models.text.adapter_text import AddedToken

if TYPE_CHECKING:
    from llguidance import LLTokenizer

Added = tuple[AddedToken, ...]
"""The tokens that an adapter adds to the base's, and those of the base that it changes."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """The tokens of an adapter in terms of the base's.

    spelled  the base's tokens that write the same text, for each token that is a text
    barred   the tokens of the base that are no text for the adapter
    """

    spelled: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    barred: tuple[int, ...] = ()


TextsOf = Callable[[Added], Mapping[int, bytes]]
"""Returns the bytes that each of an adapter's tokens adds to a text."""


def spelling_of(added: Added, texts: Mapping[int, bytes], tokenizer: "LLTokenizer") -> Spelling:
    """Return the spelling of an adapter's tokens over the base's vocabulary. `texts` are those of `TextsOf`.

    A token whose text the base's tokens cannot write is left out, so that no reply with a grammar has it.
    """
    spelled: dict[int, tuple[int, ...]] = {}
    for token in added:
        raw = b"" if token.special else texts[token.id]
        tokens = tokenizer.greedy_tokenize(raw.decode(errors="replace"))
        if tokens and tokenizer.decode_bytes(tokens) == raw:
            spelled[token.id] = tuple(tokens)
    barred = (token.id for token in added if token.special and not tokenizer.is_special_token(token.id))
    return Spelling(spelled, tuple(barred))
