"""The questions of a repository's evaluation, their form, and the score of the replies. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from manylora.control.storage.texts import is_storable
from manylora.errors import InvalidParameter

MAX_QUESTIONS = 1_000
MAX_BYTES = 1 << 20
MAX_TOKENS = 1_024
CANDIDATE, CURRENT = "candidate", "current"
FIELDS = ("prompt", "messages", "expected")
ENDPOINTS = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}


class ReplyRule(StrEnum):
    """The rule by which a reply is right.

    EXACT_MATCH  it is an expected text, without white space around it
    ACCURACY     the same, in letters of any case and with any white space between words
    CONTAINS     an expected text is in it
    """

    EXACT_MATCH = "exact_match"
    ACCURACY = "accuracy"
    CONTAINS = "contains"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question. `asked`: a prompt, or messages; `expected`: the right replies, at least one."""

    asked: str | list[dict[str, Any]]  # messages as the request has them
    expected: tuple[str, ...]


def read_questions(text: str) -> tuple[str, list[Question]]:
    """Return the kind (`prompt` or `messages`) of the questions in JSON lines, and the questions.

    Raises `InvalidParameter`, naming the line, for more than `MAX_BYTES` or `MAX_QUESTIONS`, other fields than
    `FIELDS`, and lines of both kinds.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise InvalidParameter(f"`questions` must have at most {MAX_BYTES} bytes", parameter="questions")
    if not is_storable(text):
        raise InvalidParameter("`questions` must have no NUL and no half of a character", parameter="questions")
    # Only a line feed ends a line of JSON lines: other separators of Unicode may stand in a text.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= MAX_QUESTIONS:
        raise InvalidParameter(
            f"`questions` must have 1 to {MAX_QUESTIONS} lines. Given: {len(lines)}", parameter="questions"
        )
    found = [_question(number, line) for number, line in lines]
    kinds = sorted({kind for kind, _ in found})
    if len(kinds) > 1:
        raise InvalidParameter("`questions` must all have `prompt`, or all `messages`", parameter="questions")
    return kinds[0], [question for _, question in found]


def _question(number: int, line: str) -> tuple[str, Question]:
    def wrong(why: str) -> InvalidParameter:
        return InvalidParameter(f"`questions`, line {number}: {why}", parameter="questions")

    try:
        found = json.loads(line, object_pairs_hook=_once)
    except _GivenTwice as error:
        raise wrong(f"`{error.name[:80]}` is given twice") from error
    except (ValueError, RecursionError) as error:
        raise wrong("no JSON") from error
    if not isinstance(found, dict):
        raise wrong("no JSON object")
    if unknown := [name for name in found if name not in FIELDS]:
        raise wrong(f"`{unknown[0][:80]}` is not a field of a question: it has {', '.join(FIELDS)}")
    kinds = [kind for kind in ENDPOINTS if kind in found]
    if len(kinds) != 1:
        raise wrong("a question has either `prompt` or `messages`")
    asked = found[kinds[0]]
    is_asked = isinstance(asked, str) if kinds[0] == "prompt" else _are_messages(asked)
    if not is_asked or not asked:
        raise wrong("`prompt` must be a text, and `messages` objects with `role` and `content`")
    expected = found.get("expected")
    texts = expected if isinstance(expected, list) else [expected]
    if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise wrong("`expected` must be a text that is not empty, or several")
    return kinds[0], Question(asked=asked, expected=tuple(map(str, texts)))


class _GivenTwice(Exception):
    """A field of a JSON object is given twice."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # JSON
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _GivenTwice(name)
        found[name] = value
    return found


def _are_messages(asked: object) -> bool:
    if not isinstance(asked, list):
        return False
    return all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in asked
    )


def batch_input(kind: str, questions: Sequence[Question], arms: Mapping[str, str], max_tokens: int) -> bytes:
    """Return the lines of a batch that puts every question to every arm.

    Args:  arms  `CANDIDATE` or `CURRENT` → name of the adapter
    """
    lines = []
    for arm, name in arms.items():
        for number, question in enumerate(questions):
            body = {"model": name, kind: question.asked, "max_tokens": max_tokens, "temperature": 0, "seed": 0}
            line = {"custom_id": f"{arm}-{number}", "method": "POST", "url": ENDPOINTS[kind], "body": body}
            lines.append(json.dumps(line).encode() + b"\n")
    return b"".join(lines)


def replies_in(results: bytes) -> dict[str, str]:
    """Return the text of each reply in a batch's results, by `custom_id`."""
    found: dict[str, str] = {}
    for line in results.splitlines():
        result = json.loads(line)
        response = result.get("response") or {}
        if response.get("status_code") == 200:
            choice = response["body"]["choices"][0]
            text = choice["text"] if "text" in choice else choice["message"].get("content")
            found[result["custom_id"]] = text or ""
    return found


def is_right(metric: ReplyRule, reply: str, expected: Sequence[str]) -> bool:
    match metric:
        case ReplyRule.EXACT_MATCH:
            return reply.strip() in [each.strip() for each in expected]
        case ReplyRule.ACCURACY:
            return _folded(reply) in [_folded(each) for each in expected]
        case ReplyRule.CONTAINS:
            return any(each.strip() in reply for each in expected)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of one arm: `right` of `total`; `wrong`: numbers of the first wrong questions, from 1."""

    right: int
    total: int
    wrong: tuple[int, ...]


SHOWN_WRONG = 50


def score(metric: ReplyRule, questions: Sequence[Question], replies: Mapping[str, str], arm: str) -> Score | None:
    """Return the score of an arm; None: a question has no reply, so that there is none."""
    wrong = []
    for number, question in enumerate(questions):
        reply = replies.get(f"{arm}-{number}")
        if reply is None:
            return None
        if not is_right(metric, reply, question.expected):
            wrong.append(number + 1)
    return Score(right=len(questions) - len(wrong), total=len(questions), wrong=tuple(wrong[:SHOWN_WRONG]))
