"""Foreign text on its way to a terminal or a log."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.system.printable import (
    printable,
    printable_json,
    printable_lines,
    printable_prose,
)

HOSTILE = {
    "an escape sequence": ("\x1b[2J", r"\x1b[2J"),
    "the title of the window": ("\x1b]0;root\x07", r"\x1b]0;root\x07"),
    "a C1 control": ("\x9b31m", r"\x9b31m"),
    "DEL": ("a\x7f", r"a\x7f"),
    "a line end": ("a\nok: b", r"a\nok: b"),
    "a carriage return": ("a\rb", r"a\rb"),
    "a tab": ("a\tb", r"a\tb"),
    "NUL": ("a\0b", r"a\x00b"),
    "a bidi override": ("\u202etxt.exe", r"\u202etxt.exe"),
    "a bidi isolate": ("\u2066a\u2069", r"\u2066a\u2069"),
    "a zero-width space": ("pay\u200bpal", r"pay\u200bpal"),
    "a soft hyphen": ("pay\u00adpal", r"pay\xadpal"),
    "a byte order mark": ("\ufeffa", r"\ufeffa"),
    "a line separator": ("a\u2028b", r"a\u2028b"),
    "a paragraph separator": ("a\u2029b", r"a\u2029b"),
    "a lone surrogate": ("a\ud800", r"a\ud800"),
    "a tag": ("a\U000e0041", r"a\U000e0041"),
    "a variation selector": ("a\ufe0f", r"a\ufe0f"),
    "a filler": ("\u3164", r"\u3164"),
    "a no-break space": ("a\u00a0b", r"a\xa0b"),
    "a private character": ("\ue000", r"\ue000"),
    "a pile of marks": ("a" + "\u0301" * 6, "a" + "\u0301" * 4 + r"\u0301" * 2),
}
PLAIN = ("support-triage", "Grüße, 東京 🎉", "[red]not markup[/red]", "a\\b", "", "Việt Nam", ":bomb:")
foreign = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x7f\x9b\u202e\u2069\u200b\u2028\ud800\n\t"))
)


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_what_hides_or_steers_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_what_people_write_stays(text: str) -> None:
    assert (printable(text), printable_lines(text), printable_prose(text)) == (text, text, text)


@given(foreign)
def test_no_text_controls_a_terminal(text: str) -> None:
    for shown in (printable(text), *printable_lines(text).split("\n")):
        assert shown.isprintable()
        shown.encode()


def test_lines_of_our_own_messages_stay() -> None:
    assert printable_lines("a\n\x1b[2J\tb") == "a\n\\x1b[2J\\tb"


def test_a_reply_keeps_its_lines_and_scripts_but_no_control() -> None:
    assert (
        printable_prose("می\u200cخواهم ❤\ufe0f\n\tx\x1b[2J\x9b\u202e")
        == "می\u200cخواهم ❤\ufe0f\n\tx\\x1b[2J\\x9b\\u202e"
    )


@given(st.dictionaries(foreign, foreign))
def test_json_keeps_its_meaning(value: dict[str, str]) -> None:
    for text in (json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2), json.dumps(value, indent="\t")):
        shown = printable_json(text)
        assert json.loads(shown) == value
        assert all(line.isprintable() for line in shown.split("\n"))
