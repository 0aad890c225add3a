"""One choice of an OpenAI reply: its text, cut at stop strings, and the log-probabilities of what was sent."""

from collections.abc import Sequence

from manylora.engine.events import Finished
from manylora.server.generation.text import StopCut, TextToken, openai_reason


class Choice:
    """Takes the tokens of one sequence. `push` and `finish` return text to send; `entries` gives its tokens."""

    __slots__ = ("_cut", "_length", "_pending", "_sent", "finish_reason", "text")

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self._cut = StopCut(stops, keeps_stop=keeps_stop)
        self._pending: list[tuple[int, TextToken]] = []  # (where its text starts, token), not sent yet
        self._length = 0
        self._sent = 0

    def push(self, token: TextToken) -> str:
        if not token.is_hidden:
            self._pending.append((self._length, token))
        self._length += len(token.added)
        return self._release(self._cut.push(token.added, token.hidden))

    def finish(self, finished: Finished) -> str:
        self.finish_reason = openai_reason(finished.reason, self._cut)
        return self._release(self._cut.flush())

    def entries(self) -> list[tuple[int, TextToken]]:
        """The tokens that begin in the text sent so far, each given once; at an end without a cut, all the rest."""
        is_over = self.finish_reason is not None and not self._cut.is_cut
        ready = [entry for entry in self._pending if is_over or entry[0] < self._sent]
        self._pending = self._pending[len(ready) :]
        return ready

    def _release(self, text: str) -> str:
        self.text += text
        self._sent += len(text)
        return text


def completion_logprobs(entries: Sequence[tuple[int, TextToken]], offset: int = 0) -> dict[str, object]:
    """The four parallel lists of /v1/completions."""
    return {
        "tokens": [_completion_token(token.raw) for _, token in entries],
        "token_logprobs": [token.logprob for _, token in entries],
        "top_logprobs": [_top(token) for _, token in entries],
        "text_offset": [offset + start for start, _ in entries],
    }


def chat_logprobs(entries: Sequence[tuple[int, TextToken]]) -> dict[str, object]:
    return {"content": [_chat_token(token) for _, token in entries], "refusal": None}


def _top(token: TextToken) -> dict[str, float]:
    """The likeliest tokens by text, the drawn one always among them."""
    top = {_completion_token(token.raw): token.logprob}
    for other in token.alternatives:
        top.setdefault(_completion_token(other.raw), other.logprob)
    return top


def _completion_token(raw: bytes) -> str:
    """A token's text; one that holds part of a character is spelled in bytes, as OpenAI spells it there."""
    text = _spelled(raw)
    return text if _is_whole(raw) else f"bytes:{text}"


def _chat_token(token: TextToken) -> dict[str, object]:
    shown = [_entry(other.raw, other.logprob) for other in token.alternatives]
    return {**_entry(token.raw, token.logprob), "top_logprobs": shown}


def _entry(raw: bytes, logprob: float) -> dict[str, object]:
    return {"token": _spelled(raw), "logprob": logprob, "bytes": list(raw)}


def _spelled(raw: bytes) -> str:
    r"""A token by itself: whole characters as they are, the bytes of a part of one as `\xe2`."""
    return raw.decode(errors="backslashreplace")


def _is_whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
