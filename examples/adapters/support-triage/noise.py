"""Makes clean tickets look like what people type: typos, chat spelling, lost punctuation, odd casing."""

from __future__ import annotations

import random
import re

_NEIGHBOURS = {
    "a": "qsz", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_CHAT = {
    "please": "pls", "you": "u", "your": "ur", "are": "r", "thanks": "thx", "because": "bc", "people": "ppl",
    "tomorrow": "tmrw", "and": "n", "for": "4", "to": "2", "want to": "wanna", "with": "w/", "about": "abt",
    "do not": "dont", "cannot": "cant", "i am": "im", "what": "wat", "message": "msg", "password": "pw",
    "subscription": "sub", "right now": "rn", "going to": "gonna",
}  # fmt: skip
_EMOJI = ("😡", "🙏", "😕", "😅", "!!", "!!!", "???", "😭", "🤔", "👍", "..", "...", ":(", "lol", "smh")


def roughen(text: str, rng: random.Random) -> str:
    """A rougher version of `text`; about four in ten come back as they were."""
    if rng.random() < 0.42:
        return text
    if rng.random() < 0.22:
        text = _chat_spelling(text, rng)
    if rng.random() < 0.40:
        text = _typos(text, rng, rng.choice((0.01, 0.02, 0.035, 0.05)))
    if rng.random() < 0.12:
        text = _drop_small_words(text, rng)
    if rng.random() < 0.20:
        text = re.sub(r"(?<=[a-z])'(?=[a-z])", "", text)
    draw = rng.random()
    if draw < 0.40:
        text = text.lower()
    elif draw < 0.47:
        text = text.upper()
    draw = rng.random()
    if draw < 0.18:
        text = re.sub(r"[.,;:!?](?=\s|$)", "", text)
    elif draw < 0.26:
        text = re.sub(r"[.](?=\s)", ",", text)
    elif draw < 0.32:
        text = re.sub(r"[.!](?=\s|$)", lambda _: rng.choice(("!", "!!", "!!!")), text)
    if rng.random() < 0.10:
        text = f"{text} {rng.choice(_EMOJI)}"
    return text


def _chat_spelling(text: str, rng: random.Random) -> str:
    for word, short in _CHAT.items():
        if rng.random() < 0.6:
            text = re.sub(rf"\b{word}\b", short, text, flags=re.IGNORECASE)
    return text


def _typos(text: str, rng: random.Random, rate: float) -> str:
    out: list[str] = []
    for char in text:
        if not char.isalpha() or not char.isascii() or rng.random() >= rate:
            out.append(char)
            continue
        kind = rng.randrange(4)
        if kind == 0:
            continue
        if kind == 1:
            out.append(char * 2)
        elif kind == 2 and out and out[-1].isalpha():
            out.insert(len(out) - 1, char)
        else:
            out.append(rng.choice(_NEIGHBOURS.get(char.lower(), char)))
    return "".join(out)


def _drop_small_words(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    small = {"the", "a", "an", "is", "are", "have", "has", "to", "of", "my", "it"}
    return " ".join(word for word in words if word.lower() not in small or rng.random() < 0.45)
