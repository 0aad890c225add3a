"""Grammars in Lark's notation: their tokens, as far as a reader of single parts needs them."""

import re

TOKENS = re.compile(
    r'"(?:\\.|[^"\\\n])*"?|(?://|#)[^\n]*|/(?:\\.|[^/\\])+/?|<\[[^\]]*(?:\]>)?|<[^<>\[\]\s"]+>|%json\b\s*', re.DOTALL
)
"""Strings, comments, regular expressions, tokens of the vocabulary by id or name, and the heads of JSON schemas.

One without its end goes on to the end of its line or of the text, so that no character is read twice; the compiler
refuses it.
"""
ATTRIBUTES = re.compile(r"^[ \t]*[?!]*[A-Za-z_]\w*(?:\.\d+)?[ \t]*\[([^\]\n]*)\][ \t]*:", re.MULTILINE)
"""The attributes of a rule."""
