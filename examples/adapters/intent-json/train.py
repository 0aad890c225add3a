"""Train the intent-json adapter: rank 8 on the attention projections of the upper layers.

python train.py --base PATH_TO_SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import torch  # noqa: E402
from finetune import Example, FineTuneConfig, add_common_arguments, finetune, write_report  # noqa: E402
from generate import DEFAULT_COUNT, DEFAULT_SEED, examples  # noqa: E402

VALIDATION = 80


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the data, train, and save the adapter with a record of the run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--start-from", type=Path, help="continue with this adapter")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the training set (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="also write the run's figures to this JSON file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    pairs = examples(DEFAULT_COUNT + VALIDATION, args.seed)
    chats = [Example.chat(command, expected) for command, expected in pairs]
    config = FineTuneConfig(
        rank=8,
        alpha=16.0,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
        first_layer=14,
        lr=args.lr or 1.5e-3,
        epochs=args.epochs or 2.0,
        row_tokens=320,
        batch_tokens=960,
    )
    report = finetune(
        args.base,
        chats[VALIDATION:][: args.limit],
        args.out or FOLDER,
        config,
        validation=chats[:VALIDATION],
        start_from=args.start_from,
    )
    if args.report is not None:
        write_report(report, args.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
