"""One choice of an OpenAI reply: its text without stop strings, and the log-probabilities of what was sent."""

from collections.abc import Sequence

from manylora.engine.events import Finished
from manylora.server.text import StopCut, TextToken, openai_reason


class Choice:
    """Takes the tokens of one sequence. `push` and `finish` return text to send; `entries` gives its tokens."""

    __slots__ = ("_cut", "_length", "_pending", "_sent", "finish_reason", "text")

    def __init__(self, stops: Sequence[str]) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self._cut = StopCut(stops)
        self._pending: list[tuple[int, TextToken]] = []  # (where its text starts, token), not sent yet
        self._length = 0
        self._sent = 0

    def push(self, token: TextToken) -> str:
        if token.is_special:
            return ""
        self._pending.append((self._length, token))
        self._length += len(token.text)
        return self._release(self._cut.push(token.text))

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
        "tokens": [token.text for _, token in entries],
        "token_logprobs": [token.logprob for _, token in entries],
        "top_logprobs": [_top(token) for _, token in entries],
        "text_offset": [offset + start for start, _ in entries],
    }


def chat_logprobs(entries: Sequence[tuple[int, TextToken]]) -> dict[str, object]:
    return {"content": [_chat_token(token) for _, token in entries], "refusal": None}


def _top(token: TextToken) -> dict[str, float]:
    """The likeliest tokens by text, the drawn one always among them."""
    top = {token.text: token.logprob}
    for other in token.alternatives:
        top.setdefault(other.text, other.logprob)
    return top


def _chat_token(token: TextToken) -> dict[str, object]:
    shown = [_entry(other.text, other.logprob) for other in token.alternatives]
    return {**_entry(token.text, token.logprob), "top_logprobs": shown}


def _entry(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
