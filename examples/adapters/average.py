"""Averages the weights of adapters of one shape, for example the checkpoints that one training run saved.

    python average.py OUT_DIR ADAPTER_DIR ADAPTER_DIR ...

A and B are averaged each for itself in float32. Averages of points along one run often generalise better than its end:
*Averaging Weights Leads to Wider Optima and Better Generalization*, arXiv 1803.05407.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


def average(out: Path, members: list[Path]) -> None:
    """Write the mean of `members` to `out`, with the configuration of the first."""
    tensors = [load_file(member / WEIGHTS) for member in members]
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise SystemExit("the adapters do not have the same tensors and shapes")
    out.mkdir(parents=True, exist_ok=True)
    mean = {
        name: (sum(each[name].float() for each in tensors) / len(tensors)).to(first.dtype)
        for name, first in tensors[0].items()
    }
    save_file(mean, out / WEIGHTS, metadata={"format": "pt"})
    if members[0].resolve() != out.resolve():
        shutil.copy(members[0] / "adapter_config.json", out / "adapter_config.json")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("members", type=Path, nargs="+")
    options = parser.parse_args()
    average(options.out, options.members)


if __name__ == "__main__":
    main()
