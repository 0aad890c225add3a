"""The parts of a choice in an OpenAI reply: its finish reason, and the log-probabilities of its tokens."""

from collections.abc import Sequence
from dataclasses import replace

from manylora.engine.events import Finished, FinishReason
from manylora.server.generation.text import TextToken


def finish_reason(end: Finished, *, is_cut: bool, own: str = "stop") -> str:
    """Return OpenAI's finish reason of an end.

    Args:  is_cut  whether a stop string has ended the text
           own     the reason of a reply that ends by itself
    """
    if end.reason is FinishReason.LENGTH and not is_cut:
        return "length"
    return own


def completion_logprobs(tokens: Sequence[TextToken]) -> dict[str, object]:
    """Return the four parallel lists of /v1/completions."""
    return {
        "tokens": [_completion_token(token.raw) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def behind(echo: str, tokens: Sequence[TextToken]) -> Sequence[TextToken]:
    """Return the tokens of a generated text with their offsets in the text behind an echo."""
    return [replace(token, offset=len(echo) + token.offset) for token in tokens] if echo else tokens


def in_echo(prompt: Sequence[TextToken], echo: str) -> list[TextToken]:
    """Return a prompt's tokens with their offsets in its echo, which lacks special tokens that the tokenizer added."""
    lead = max(0, "".join(token.text for token in prompt).find(echo))
    return [replace(token, offset=min(max(0, token.offset - lead), len(echo))) for token in prompt]


def chat_logprobs(tokens: Sequence[TextToken]) -> dict[str, object]:
    """Return the log-probabilities of /v1/chat/completions."""
    return {"content": chat_entries(tokens), "refusal": None}


def chat_entries(tokens: Sequence[TextToken]) -> list[dict[str, object]]:
    """Return an entry for each token, with the likeliest tokens beside it."""
    return [_chat_token(token) for token in tokens]


def _top(token: TextToken) -> dict[str, float] | None:
    """Return the likeliest tokens by text, always including the token itself; None for one without a score."""
    if token.logprob is None:
        return None
    top = {_completion_token(token.raw): token.logprob}
    for other in token.alternatives:
        top.setdefault(_completion_token(other.raw), other.logprob)
    return top


def _completion_token(raw: bytes) -> str:
    """Return a token's text; for a token with a part of a character, OpenAI's spelling in bytes."""
    text = _spelled(raw)
    return text if _is_whole(raw) else f"bytes:{text}"


def _chat_token(token: TextToken) -> dict[str, object]:
    shown = [_entry(other.raw, other.logprob) for other in token.alternatives]
    return {**_entry(token.raw, token.logprob), "top_logprobs": shown}


def _entry(raw: bytes, logprob: float | None) -> dict[str, object]:
    return {"token": _spelled(raw), "logprob": logprob, "bytes": list(raw)}


def _spelled(raw: bytes) -> str:
    r"""Return a token's text with whole characters unchanged and other bytes in the form `\xe2`."""
    return raw.decode(errors="backslashreplace")


def _is_whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
