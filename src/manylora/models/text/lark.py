"""Grammars in Lark's notation: their tokens, as far as a reader of single parts needs them."""

import re

TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|<\[[^\]]*\]>|<[^<>\[\]\s"]+>|%json\b', re.DOTALL)
"""Strings, comments, regular expressions, tokens of the vocabulary by id or name, and the heads of JSON schemas."""
ATTRIBUTES = re.compile(r"^[ \t]*[?!]*[A-Za-z_]\w*(?:\.\d+)?[ \t]*\[([^\]\n]*)\][ \t]*:", re.MULTILINE)
"""The attributes of a rule."""
