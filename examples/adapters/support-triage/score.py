"""Score the support-triage adapter against its base model on both held-out files, or on those that are given.

python score.py --url http://127.0.0.1:8080 --json scores.json
python score.py --heldout heldout-2.jsonl --show-errors
python score.py --offline . --base PATH_TO_SmolLM2-135M-Instruct
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import scoring  # noqa: E402
from generate import generate  # noqa: E402
from phrases import LABELS  # noqa: E402

MAX_TOKENS = 8


def judge(held_out: Sequence[scoring.Example], answers: Sequence[str]) -> dict[str, float]:
    """Accuracy and the recall of each class. An answer counts when it is exactly the label."""
    total = Counter(example.expected for example in held_out)
    right = Counter(
        example.expected for example, text in zip(held_out, answers, strict=True) if text.strip() == example.expected
    )
    named = sum(text.strip() in LABELS for text in answers)
    recalls = {f"{label} ({total[label]} tickets)": right[label] / total[label] for label in LABELS if total[label]}
    return {
        "accuracy": right.total() / len(held_out),
        "answers that are a label": named / len(held_out),
        **recalls,
        "lowest recall": min(recalls.values()),
    }


def explain(example: scoring.Example, answer: str) -> str | None:
    """What is wrong with an answer, or None."""
    return None if answer.strip() == example.expected else f"expected {example.expected}, answered {answer.strip()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Score as the command line says."""
    task = scoring.Task(
        folder=FOLDER,
        judge=judge,
        max_tokens=MAX_TOKENS,
        training_inputs=lambda: (text for text, _ in generate()[0]),
        explain=explain,
        held_out=("heldout.jsonl", "heldout-2.jsonl"),
    )
    return scoring.run(task, argv)


if __name__ == "__main__":
    sys.exit(main())
