"""Regular expressions: those of Python mean the same to the compiler, and others are refused with the reason."""

import re
import warnings

import pytest

from manylora.engine.grammars.compiling import CompiledGrammar, compiled
from manylora.errors import InvalidParameter
from manylora.models.text.grammar import json_grammar, regex_grammar
from manylora.models.text.patterns import portable_pattern
from tests.engine.grammars.vocabulary import END, begun, compact, open_bytes, tokens_of

VOCABULARY = open_bytes()
TEXTS = [
    *("", "a", "b", "ab", "aa", "aab", "a\n", "a\nb", "1", "12", "_", "é", " ", "\t", "-", "a-b", "😀", "$", "\\", "]"),
    *("[", "[a]", "a]", "b]", "{2}", "a{2}", "&", "~", "/", "a/b", "+", "a+", "^", "A", "^a", "a$", '"', "|"),
]
PATTERNS = [
    *(
        "a*?b",
        "a+?",
        "a??b",
        "a{1,2}?",
        "a{2,}",
        "a{2}",
        r"\d",
        r"\w+",
        r"\s",
        "[^a]",
        ".",
        "(?s).",
        "(?i)a",
        "(?i:a)b",
    ),
    *(
        "[[a]",
        "[^[]",
        "[a[b]",
        "[a&&b]",
        "[&~]",
        "[!--]",
        "[+--]",
        "[a~~b]",
        r"[\[\]]",
        "[[]a]",
        "[]a]",
        "[^]a]",
        r"[\]a]",
    ),
    *(
        r"a\+",
        r"\++",
        "[+]+",
        "(a+)+",
        "(a*)b",
        "(?:a|b)+",
        r"a\{2\}",
        "[a-b]",
        r"[\d-]",
        "^a$",
        "a$",
        "a|b$",
        r"\\",
        r"\/",
    ),
    *(
        "(?P<x>a)b",
        "a||b",
        "|a",
        "a|",
        "((a))",
        r"\x61",
        "\u0061",
        r"\t",
        "é",
        "😀",
        r"\^",
        r"[\^a]",
        "[a^]",
        r"a\$",
        '"',
    ),
]
REFUSED = [
    *(("a++", "possessive"), ("a*+b", "possessive"), ("a?+", "possessive"), ("a{1,2}+a", "possessive")),
    *(
        ("[[:alpha:]]", "POSIX"),
        ("a\\", "ends with a backslash"),
        ("(?=a)a", "look-around"),
        ("a(?<!b)", "look-around"),
    ),
    *(
        (r"(a)\1", "backreferences"),
        ("(?P<x>a)(?P=x)", "unrecognized"),
        (r"a\b", "not supported"),
        ("(?>a)", "unrecog"),
    ),
    *((r"\Z", "escape"), ("a^b", "not supported"), ("(", "unclosed"), ("a{,2}", "repetition"), ("(?(1)a)", "unrecog")),
]


def takes(grammar: CompiledGrammar, text: str) -> bool:
    """Whether a grammar has a text."""
    matcher, tokens = begun(grammar), tokens_of(text)
    if matcher.num_valid(tokens) != len(tokens):
        return False
    for token in tokens:
        matcher.advance(token)
    return matcher.is_over or matcher.num_valid([END]) == 1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_expression_matches_what_python_matches(pattern: str) -> None:
    grammar = compiled(regex_grammar(pattern), VOCABULARY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of classes in classes
        expression = re.compile(pattern)
    for text in TEXTS:
        assert takes(grammar, text) == (expression.fullmatch(text) is not None), text


@pytest.mark.parametrize("pattern", ["[[a]", "[^[]", "^[a[b]$", "[a&&b]", "[+--]", "[a~~b]", "^a$", r"[\[\]]"])
def test_an_expression_of_a_schema_is_searched_for(pattern: str) -> None:
    grammar = compiled(json_grammar({"type": "string", "pattern": pattern}), VOCABULARY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expression = re.compile(pattern.replace("$", r"\Z"))
    for text in TEXTS:
        assert takes(grammar, compact(text)) == (expression.search(text) is not None), text


@pytest.mark.parametrize(("pattern", "why"), REFUSED)
def test_other_parts_are_refused_with_the_reason(pattern: str, why: str) -> None:
    with pytest.raises(InvalidParameter, match=why) as refused:
        compiled(regex_grammar(pattern, field="guided_regex"), VOCABULARY)
    assert refused.value.parameter == "guided_regex"


@pytest.mark.parametrize("schema", [{"pattern": "[]a]"}, {"patternProperties": {"[^]": {}}}, {"pattern": "a++"}])
def test_an_expression_of_a_schema_is_refused_with_its_place(schema: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter, match="the expression of #/properties/x/pattern"):
        json_grammar({"type": "object", "properties": {"x": schema}})


def test_a_plain_expression_stays_as_it_is() -> None:
    for pattern in ("[a-z]{2,4}(-[0-9]+)?", r"^\d{3}\.[^\s/]*$", "(?i:é)|b+?"):
        assert portable_pattern(pattern, is_of_schema=True) == pattern
