"""Score the intent-json adapter against its base model on ``heldout.jsonl``.

python score.py --url http://127.0.0.1:8080 --json scores.json
python score.py --offline . --base PATH_TO_SmolLM2-135M-Instruct
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import scoring  # noqa: E402
from generate import CONTINUATION_SEED, DEFAULT_COUNT, DEFAULT_SEED, examples  # noqa: E402


def parse(text: str) -> dict[str, Any] | None:
    """The JSON object that ``text`` is, or None when it is anything else."""
    try:
        value = json.loads(text.strip())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _same(left: Any, right: Any) -> bool:
    """Equality that does not take 1, 1.0 and true for each other."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def judge(held_out: Sequence[scoring.Example], answers: Sequence[str]) -> dict[str, float]:
    """Exact match of the parsed object, right intents, and answers that are a JSON object at all."""
    exact = intents = valid = 0
    for example, text in zip(held_out, answers, strict=True):
        expected, got = json.loads(example.expected), parse(text)
        if got is not None:
            valid += 1
            intents += got.get("intent") == expected["intent"]
            exact += _same(got, expected)
    total = len(held_out)
    return {"exact_match": exact / total, "intent_accuracy": intents / total, "valid_json": valid / total}


def explain(example: scoring.Example, answer: str) -> str | None:
    """What is wrong with an answer, or None."""
    if _same(parse(answer), json.loads(example.expected)):
        return None
    return f"expected {example.expected}\n    answered {answer}"


def main(argv: Sequence[str] | None = None) -> int:
    """Score as the command line says."""
    task = scoring.Task(
        folder=FOLDER,
        judge=judge,
        max_tokens=64,
        training_inputs=lambda: (
            command for seed in (DEFAULT_SEED, CONTINUATION_SEED) for command, _ in examples(DEFAULT_COUNT, seed)
        ),
        explain=explain,
    )
    return scoring.run(task, argv)


if __name__ == "__main__":
    raise SystemExit(main())
