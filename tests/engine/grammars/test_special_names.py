"""Special tokens and grammars: no text spells one, and a grammar in Lark's notation names them."""

import json

import numpy as np
import pytest

from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.grammars.special_names import with_hidden_names, with_ids
from manylora.models.text.grammar import GrammarSource, choice_grammar, json_grammar, lark_grammar, regex_grammar
from tests.engine.grammars.vocabulary import byte_tokenizer, matcher_of, tokens_of

SPECIAL = {0, 1, 2}
CLOSED = {"required": ["</s>"], "additionalProperties": False}


def written(matcher: GrammarMatcher, most: int = 40) -> list[int]:
    """The tokens of a reply that takes the first allowed one each time."""
    tokens: list[int] = []
    masks = np.zeros((1, matcher.words), dtype=np.uint32)
    while not matcher.is_over and len(tokens) < most:
        matcher.fill(masks, 0)
        tokens.append(int(np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))[0]))
        matcher.advance(tokens[-1])
    return tokens


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (regex_grammar("<s>b"), "<s>b"),
        (choice_grammar(["a</s>b", "a</s>c"]), "a</s>b"),
        (json_grammar({"const": "</s>"}), '"</s>"'),
        (json_grammar({"type": "object", "properties": {"</s>": {"const": 1}}, **CLOSED}), '{"</s>":1}'),
        (lark_grammar('start: "<unk>" "<s>"'), "<unk><s>"),
    ],
    ids=["regex", "choice", "value", "property", "lark"],
)
def test_the_name_of_a_special_token_in_a_grammar_is_text(source: GrammarSource, text: str) -> None:
    tokens = written(matcher_of(source))[: len(text)]
    assert b"".join(bytes([byte]) for byte in text.encode()) == text.encode()
    assert [byte_tokenizer().id_to_token(token) for token in tokens] == list(text)
    assert not SPECIAL & set(tokens)
    matcher = matcher_of(source)
    assert matcher.forced(1) == tuple(tokens[:1])


def test_a_grammar_names_special_tokens() -> None:
    assert written(matcher_of(lark_grammar('start: "a" <s> "b"'))) == [*tokens_of("a"), 1, *tokens_of("b")]
    assert written(matcher_of(lark_grammar("start: <[1]> <unk>"))) == [1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('start: <s> "<s>" /<s>/', 'start: <[1]> "<s>" /<s>/'),
        ("start: <s>? // not <s>", "start: <[1]>? // not <s>"),
        ('start: "a\\"" <s> "//" <s>', 'start: "a\\"" <[1]> "//" <[1]>'),
        ("start: <other> <[4]> <s><s>", "start: <other> <[4]> <[1]><[1]>"),
        ('start: %json {"const": "<s>"}', 'start: %json {"const": "<s>"}'),
    ],
)
def test_names_are_replaced_outside_texts(text: str, expected: str) -> None:
    assert with_ids(text, {"<s>": 1}) == expected


def test_special_tokens_keep_their_ids() -> None:
    hidden, ids = with_hidden_names(byte_tokenizer().to_str())
    assert ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not {"<unk>", "<s>", "</s>"} & json.loads(hidden)["model"]["vocab"].keys()
