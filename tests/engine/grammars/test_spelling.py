"""Tokens of adapters over the base's vocabulary: the same masks as over a vocabulary with these tokens."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken as LibraryToken

from manylora.clock import ManualClock
from manylora.engine.grammars.compiler import GrammarCompiler, GrammarKey, grammar_key
from manylora.engine.grammars.compiling import CompiledGrammar, Vocabulary, compiled, open_vocabulary
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.grammars.spelling import Added, Spelling, spelling_of
from manylora.engine.grammars.vocabularies import Vocabularies
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.models.text.adapter_text import AddedToken
from manylora.models.text.grammar import GrammarSource, json_grammar, lark_grammar, regex_grammar
from tests.engine.grammars.vocabulary import END, VOCAB, begun, byte_tokenizer, texts_of, tokens_of

FIRST = 3 + 256
TEXTS = ["name", '":', '{"', "aa", "ab", '"b":[', "xb", "12", "}]", "\n"]
ADDED: Added = (
    *(AddedToken(id=FIRST + index, content=text) for index, text in enumerate(TEXTS)),
    AddedToken(id=FIRST + len(TEXTS), content="<x>", special=True),
    AddedToken(id=FIRST + len(TEXTS) + 1, content="a"),
)
SPECIAL, LETTER = FIRST + len(TEXTS), FIRST + len(TEXTS) + 1
GRAMMARS = [
    json_grammar(
        {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}, "b": {"type": "array"}}}
    ),
    json_grammar({"type": "array", "items": {"enum": ["ab", "xb", 12, 1]}, "maxItems": 4}),
    regex_grammar("(a|ab|12|xb\n)*"),
    regex_grammar("[ab]{0,5}"),
    lark_grammar('start: ("a" | "aa" "b")+ /[0-9]{2}/?'),
]


def opened(added: Added) -> Vocabulary:
    """The vocabulary of bytes and further tokens, the oracle."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([LibraryToken(token.content, special=token.special, normalized=False) for token in added])
    assert all(tokenizer.token_to_id(token.content) == token.id for token in added)
    return open_vocabulary(tokenizer.to_str(), size=VOCAB, ends=(END,))


BASE, OWN = opened(()), opened(ADDED[:-1])


def spelling(added: Added) -> Spelling:
    return spelling_of(added, texts_of(added), BASE.tokenizer)


SPELLING = spelling(ADDED)


def spelled(source: GrammarSource, spelling: Spelling = SPELLING) -> GrammarMatcher:
    grammar = compiled(source, BASE)
    return GrammarMatcher(
        grammar.matcher.deep_copy(), grammar.source, vocab=VOCAB, library_ends=(END,), ends=(END,), spelling=spelling
    )


def masks_of(matcher: GrammarMatcher, draft: tuple[int, ...] = ()) -> list[set[int]]:
    masks = np.zeros((1 + len(draft), matcher.words), dtype=np.uint32)
    matcher.fill(masks, 0, draft)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row).tolist()) for row in bits]


def agree(ours: set[int], oracle: GrammarMatcher, theirs: set[int]) -> bool:
    """Whether a mask is the oracle's.

    The oracle's library has no token of one letter beside the base's own, and where a text leaves no choice, it allows
    one of the tokens that may write it.
    """
    (twin,) = tokens_of("a")
    if len(theirs) == 1:
        return all(oracle.num_valid([twin if token == LETTER else token]) == 1 for token in ours)
    return ours == (theirs | {LETTER} if twin in theirs else theirs)


@pytest.mark.parametrize("source", GRAMMARS, ids=[source.text[:30] for source in GRAMMARS])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_of_a_vocabulary_with_the_tokens(source: GrammarSource, seed: int) -> None:
    chance, ours, oracle = random.Random(seed), spelled(source), begun(compiled(source, OWN))
    twin = {LETTER: tokens_of("a")[0]}
    for _ in range(12):
        (allowed,) = masks_of(ours)
        assert allowed
        assert agree(allowed, oracle, *masks_of(oracle))
        draft = tuple(chance.choice(sorted(allowed | {FIRST})) for _ in range(3))
        assert ours.num_valid(draft) == oracle.num_valid([twin.get(token, token) for token in draft])
        ahead = masks_of(ours, draft)
        assert ahead[0] == allowed
        token = chance.choice(sorted(allowed - {END}) or [END])
        expected = ahead[1] if token == draft[0] else None
        ours.advance(token)
        oracle.advance(twin.get(token, token))
        assert ours.is_over == oracle.is_over
        if ours.is_over or token == END:
            break
        assert expected in (None, *masks_of(ours))


def test_a_token_that_the_adapter_makes_special_is_no_text() -> None:
    (letter,) = tokens_of("b")
    own = spelling((AddedToken(id=letter, content="b", special=True),))
    assert masks_of(spelled(regex_grammar("[ab]+"), own)) == [set(tokens_of("a"))]


def test_a_token_that_the_adapter_makes_a_text_may_come() -> None:
    matcher = spelled(regex_grammar("<s>b"), spelling((AddedToken(id=1, content="<s>"),)))
    assert masks_of(matcher) == [{1, *tokens_of("<")}]
    matcher.advance(1)
    assert masks_of(matcher) == [set(tokens_of("b"))]


@pytest.mark.parametrize("text", [b"", b"\xfcb"])
def test_a_token_that_the_base_cannot_write_is_left_out(text: bytes) -> None:
    added = (AddedToken(id=FIRST, content="x"),)
    assert spelling_of(added, {FIRST: text}, BASE.tokenizer) == Spelling()


def request(source: GrammarSource, added: Added) -> Request:
    return Request(
        id=RequestId("r"),
        flow=Flow("a"),
        salt="",
        tokens=(3,),
        adapter=None,
        sampling=SamplingParams(),
        stop=StopParams(max_new_tokens=3, added_tokens=added),
        grammar=source,
    )


@pytest.mark.parametrize(
    ("source", "is_named"),
    [
        (json_grammar({"type": "string"}), False),
        (regex_grammar("name"), False),
        (lark_grammar('start: "name"'), False),
        (lark_grammar(f"start: <[{FIRST}]>"), True),
        (lark_grammar(f"start: <[3, {FIRST}]>"), True),
        (lark_grammar("start: <[3-400]>"), True),
        (lark_grammar("start: <[3]>"), False),
        (lark_grammar("start: <x>"), True),
        (lark_grammar(f"start: <[{SPECIAL}]>"), False),
    ],
    ids=lambda value: value.text[:30] if isinstance(value, GrammarSource) else str(value),
)
def test_a_grammar_has_the_base_s_vocabulary_unless_it_names_a_token(source: GrammarSource, is_named: bool) -> None:
    assert grammar_key(request(source, ADDED)) == GrammarKey(source, ADDED if is_named else ())


def test_a_special_token_of_an_adapter_comes_by_its_id_over_the_base_s_vocabulary() -> None:
    key = grammar_key(request(lark_grammar(f"start: <[{SPECIAL}]> /[a-b]/"), ADDED))
    assert key is not None
    compiler = GrammarCompiler(
        Vocabularies(lambda added: BASE, texts_of), ManualClock(), start_thread=lambda job: job()
    )
    compiler.want(key, Flow("a"))
    assert isinstance(compiler.want(key, Flow("a")), CompiledGrammar)
    matcher = compiler.matcher(key, Flow("a"), (END,), ADDED)
    assert masks_of(matcher) == [{SPECIAL}]
    matcher.advance(SPECIAL)
    assert masks_of(matcher) == [{*tokens_of("ab"), LETTER}]
