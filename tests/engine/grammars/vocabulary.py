"""A vocabulary of one token a byte for grammars, with the ends of a text after them."""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from manylora.engine.grammars.compiling import CompiledGrammar, Vocabulary, compiled, open_vocabulary
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.grammars.spelling import Added
from manylora.models.text.grammar import GrammarSource

VOCAB = 320
END = 2
FIRST = 3
"""Id of the first byte's token; those before are special."""


def byte_tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:3])
    return tokenizer


def open_bytes(added: Added = ()) -> Vocabulary:
    """The vocabulary of bytes, with no further tokens."""
    assert not added
    return open_vocabulary(byte_tokenizer().to_str(), size=VOCAB, ends=(END,))


def texts_of(added: Added) -> dict[int, bytes]:
    """The texts of tokens of ASCII."""
    return {token.id: token.content.encode() for token in added}


_TOKENIZER = byte_tokenizer()


def tokens_of(text: str) -> list[int]:
    return list(_TOKENIZER.encode(text, add_special_tokens=False).ids)


def text_of(tokens: Sequence[int]) -> str:
    return str(_TOKENIZER.decode(list(tokens)))


def matcher_of(source: GrammarSource, ends: tuple[int, ...] = (END,)) -> GrammarMatcher:
    """A matcher at the beginning of a grammar."""
    return begun(compiled(source, open_bytes()), ends)


def begun(grammar: CompiledGrammar, ends: tuple[int, ...] = (END,)) -> GrammarMatcher:
    return GrammarMatcher(
        grammar.matcher.deep_copy(),
        grammar.source,
        vocab=grammar.vocabulary.size,
        library_ends=grammar.vocabulary.ends,
        ends=ends,
    )


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
