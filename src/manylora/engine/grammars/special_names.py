"""Special tokens in the library's vocabulary: known by their ids alone, so that no text of a grammar spells one.

The library tokenises text that a grammar leaves no choice about. A tokenizer finds special tokens in any text by their
names, so that a choice such as `</s>` would become the token that ends the reply. Here their names are replaced by ones
that no text has, and `<name>` in a grammar in Lark's notation by `<[id]>`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from manylora.models.text.lark import TOKENS

_HIDDEN = "\ufdd0{}\ufdd1"
"""The name of a special token in the library's vocabulary: characters of no text (Unicode 16, 23.7, noncharacters)."""


def with_hidden_names(text: str) -> tuple[str, dict[str, int]]:
    """Return the text of a tokenizer.json whose special tokens have other names, and their ids by their own names."""
    content: dict[str, Any] = json.loads(text)
    ids: dict[str, int] = {
        token["content"]: token["id"] for token in content.get("added_tokens", ()) if token["special"]
    }
    for token in content.get("added_tokens", ()):
        if token["special"]:
            token["content"] = _HIDDEN.format(token["id"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_hidden(piece, ids): number for piece, number in model["vocab"].items()}
    else:  # the pieces of Unigram, with their scores
        model["vocab"] = [[_hidden(piece, ids), score] for piece, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = _hidden(model["unk_token"], ids)
    content["post_processor"] = None
    return json.dumps(content, ensure_ascii=False), ids


def _hidden(piece: str, ids: Mapping[str, int]) -> str:
    return _HIDDEN.format(ids[piece]) if piece in ids else piece


def with_ids(text: str, ids: Mapping[str, int]) -> str:
    """Return a grammar in Lark's notation that names special tokens by their ids."""

    def by_id(found: re.Match[str]) -> str:
        word = found[0]
        return f"<[{ids[word]}]>" if word in ids else word

    return TOKENS.sub(by_id, text)
