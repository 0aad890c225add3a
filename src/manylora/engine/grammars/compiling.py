"""One compilation: a grammar and a vocabulary become a matcher at its beginning. It runs in a thread of its own.

The library is imported here alone, and only once a request needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from manylora.engine.grammars.matcher import one_line
from manylora.engine.grammars.special_names import with_hidden_names, with_ids
from manylora.models.text.grammar import GrammarKind, GrammarSource

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the base or of an adapter in the library's form.

    size  width of a mask
    ends  the tokens by which the library ends a text
    ids   of special tokens by their names
    """

    tokenizer: "LLTokenizer"
    size: int
    ends: tuple[int, ...]
    ids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar at its beginning. Its matcher is copied for each sequence and never advanced."""

    matcher: "LLMatcher"
    source: GrammarSource
    vocabulary: Vocabulary


def compiled(source: GrammarSource, vocabulary: Vocabulary) -> CompiledGrammar:
    """Compile a grammar, and compute its first mask, which is the slowest.

    Raises: `InvalidParameter` for a grammar that cannot be compiled within the limits
    """
    from llguidance import LLMatcher

    try:
        text = _library_text(source, vocabulary.ids)
    except (ValueError, RecursionError) as error:
        raise source.refusal(one_line(str(error))) from error
    matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=_limits())
    _check(matcher, source)
    first = np.zeros((vocabulary.size + 31) // 32, dtype=np.uint32)
    matcher.unsafe_compute_mask_ptr(first.ctypes.data, first.nbytes)
    _check(matcher, source)
    if not first.any():
        raise source.refusal("no text satisfies it")
    return CompiledGrammar(matcher, source, vocabulary)


def _check(matcher: "LLMatcher", source: GrammarSource) -> None:
    if matcher.is_error():
        why = one_line(matcher.get_error().partition("; following special tokens")[0])
        # The library's own word for a grammar that no text can begin.
        raise source.refusal("no text satisfies it" if why in ("NoExtension", "NoExtensionBias") else why)
    for warning in matcher.get_grammar_warnings():
        if "not fully supported" in warning:
            raise source.refusal(one_line(warning))


def _library_text(source: GrammarSource, ids: Mapping[str, int]) -> str:
    """Return the text in the library's own form. Raises `ValueError` for one that it cannot read.

    Args:  ids  of special tokens by their names
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    match source.kind:
        case GrammarKind.JSON:
            # Overrides, not defaults: the library lets a schema's own options win over defaults.
            overrides: JsonCompileOptions = {
                "coerce_one_of": True,
                "lenient": False,
                "whitespace_flexible": bool(source.whitespace),
                "whitespace_pattern": source.whitespace or None,
            }
            return LLMatcher.grammar_from_json_schema(source.text, overrides=overrides)
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(source.text)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(with_ids(source.text, ids))
        case GrammarKind.GBNF:
            try:
                return LLMatcher.grammar_from_lark(gbnf_to_lark(source.text))
            except Exception as error:  # the translator raises bare ones
                raise ValueError(str(error)) from error


def _limits() -> "LLParserLimits":
    """Return the limits of the parser, in its own units. A grammar that exceeds one is refused, or ends its row."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=250_000,
        verbose_errors=False,
    )


def open_vocabulary(text: str, *, size: int, ends: tuple[int, ...]) -> Vocabulary:
    """Return the vocabulary of a tokenizer, given as the text of a tokenizer.json, for `size` logits.

    Takes a quarter of a second for 50,000 tokens, during which the interpreter does nothing else.
    Raises: `ImportError` if the library is not installed
    """
    from llguidance import LLTokenizer

    hidden, ids = with_hidden_names(text)
    tokenizer = LLTokenizer(hidden, n_vocab=size, eos_token=list(ends) or None)
    return Vocabulary(tokenizer, size, tuple(sorted(tokenizer.eos_tokens)), ids)
