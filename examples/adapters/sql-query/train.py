"""Train the sql-query adapter: rank 16 with rank-stabilised scaling on q, v and the MLP of layers 17 to 28.

python train.py --base PATH_TO_SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import torch  # noqa: E402
from finetune import Example, FineTuneConfig, add_common_arguments, finetune, write_report  # noqa: E402
from generate import DEFAULT_COUNT, DEFAULT_SEED, examples  # noqa: E402

VALIDATION = 80
RANK = 16
RS_ALPHA = 8.0


def declare_rslora(folder: Path, rs_alpha: float) -> None:
    """Restate the saved scaling the rank-stabilised way: ``alpha / sqrt(rank)`` instead of ``alpha / rank``."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config.update(use_rslora=True, lora_alpha=rs_alpha)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the data, train, and save the adapter with a record of the run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--report", type=Path, help="also write the run's figures to this JSON file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    pairs = examples(DEFAULT_COUNT + VALIDATION, DEFAULT_SEED)
    chats = [Example.chat(question, sql) for question, sql in pairs]
    config = FineTuneConfig(
        rank=RANK,
        alpha=RS_ALPHA
        * math.sqrt(RANK),  # the trainer scales by alpha / rank: the same number as RS_ALPHA / sqrt(RANK)
        target_modules=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
        first_layer=17,
        last_layer=28,
        lr=args.lr or 1e-3,
        epochs=args.epochs or 2.0,
        row_tokens=320,
        batch_tokens=640,
    )
    out = args.out or FOLDER
    report = finetune(args.base, chats[VALIDATION:][: args.limit], out, config, validation=chats[:VALIDATION])
    declare_rslora(out, RS_ALPHA)
    if args.report is not None:
        write_report(report, args.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
