"""Trains the `support-triage` adapter on what ``generate.py`` wrote.

python generate.py && python train.py --base DIR
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from finetune import Example, FineTuneConfig, add_common_arguments, finetune, write_report  # noqa: E402

CONFIG = FineTuneConfig(rank=16, alpha=32, first_layer=10, lr=6e-4, epochs=1, batch_tokens=768)


def read(path: Path) -> list[Example]:
    """Examples from a file of ``{"ticket", "label"}`` lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Example.chat(row["ticket"], row["label"]) for row in rows]


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--data", type=Path, default=FOLDER / "build" / "train.jsonl")
    parser.add_argument("--validation", type=Path, help="tickets to score after each epoch")
    parser.add_argument("--start-from", type=Path, metavar="ADAPTER_DIR", help="continue training this adapter")
    parser.add_argument("--report", type=Path, help="write the run's figures to this JSON file")
    args = parser.parse_args()
    changes = {name: value for name in ("epochs", "lr") if (value := getattr(args, name)) is not None}
    examples = read(args.data)[: args.limit]
    validation = read(args.validation) if args.validation else []
    config = replace(CONFIG, **changes)
    report = finetune(
        args.base, examples, args.out or FOLDER, config, validation, args.threads, start_from=args.start_from
    )
    if args.report:
        write_report(report, args.report)


if __name__ == "__main__":
    main()
