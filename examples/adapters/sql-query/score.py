"""Score the sql-query adapter against its base model on ``heldout.jsonl`` by running the answers.

A held-out question counts as answered when the predicted SELECT gives the rows of the expected one on
the shop database: in the same order where the expected query orders its rows, in any order otherwise.

    python score.py --url http://127.0.0.1:8080 --json scores.json
    python score.py --offline . --base PATH_TO_SmolLM2-135M-Instruct
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import scoring  # noqa: E402
from generate import DEFAULT_COUNT, DEFAULT_SEED, examples  # noqa: E402
from shop import QueryError, Rows, connect, run_select  # noqa: E402


def statement(text: str) -> str:
    """The SQL of an answer: a surrounding Markdown code fence, as chat models like to add, is taken off."""
    text = text.strip()
    if text.startswith("```"):
        text = text.removeprefix("```").removeprefix("sql").split("```")[0].strip()
    return text


def comparable(rows: Rows, ordered: bool) -> list[str]:
    """Rows in a form that compares equal when the results do; money is rounded to a hundredth of a cent."""
    texts = [repr([round(value, 4) if isinstance(value, (int, float)) else value for value in row]) for row in rows]
    return texts if ordered else sorted(texts)


class Judge:
    """Runs expected and predicted queries on one read-only database."""

    def __init__(self) -> None:
        self._database = connect()

    def rows(self, text: str) -> Rows | None:
        """The rows of an answer, or None when it cannot be run."""
        try:
            return run_select(self._database, statement(text))
        except QueryError:
            return None

    def matches(self, example: scoring.Example, text: str) -> bool:
        """Whether an answer gives the rows of the expected query."""
        expected, got = self.rows(example.expected), self.rows(text)
        if expected is None:
            raise ValueError(f"the expected query cannot be run: {example.expected}")
        ordered = "ORDER BY" in example.expected
        return got is not None and comparable(got, ordered) == comparable(expected, ordered)

    def __call__(self, held_out: Sequence[scoring.Example], answers: Sequence[str]) -> dict[str, float]:
        """Execution match, answers that run at all, and answers that are the expected text."""
        pairs = list(zip(held_out, answers, strict=True))
        return {
            "execution_match": sum(self.matches(example, text) for example, text in pairs) / len(pairs),
            "valid_sql": sum(self.rows(text) is not None for _, text in pairs) / len(pairs),
            "same_text": sum(text.strip() == example.expected for example, text in pairs) / len(pairs),
        }

    def explain(self, example: scoring.Example, answer: str) -> str | None:
        """What is wrong with an answer, or None."""
        if self.matches(example, answer):
            return None
        return f"expected {example.expected}\n    answered {answer}"


def main(argv: Sequence[str] | None = None) -> int:
    """Score as the command line says."""
    judge = Judge()
    task = scoring.Task(
        folder=FOLDER,
        judge=judge,
        max_tokens=96,
        training_inputs=lambda: (question for question, _ in examples(DEFAULT_COUNT, DEFAULT_SEED)),
        explain=judge.explain,
    )
    return scoring.run(task, argv)


if __name__ == "__main__":
    raise SystemExit(main())
