"""The fast kernels against the float32 reference: greedy replies on the default base, to the first difference.

    python -m benchmarks.arithmetic.agreement [--prompts 100] [--tokens 32] [--quantize none] [--json FILE]

Prompts are held-out messages of the demo adapters, as chats. Printed are the replies that are the same to the end, and
for each of the others by how much the reference preferred its own token where they part: a rounding decides near-ties.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from manylora.bench.agreement import find_divergences
from manylora.bench.machine import ROOT, describe
from manylora.bench.servers import default_base
from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.models.text.tokenizer import Tokenizer
from manylora.wiring.engine import build_engine

HELD_OUT = ROOT / "examples" / "adapters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--quantize", default="none", help="of the fast engine: none or int8")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    tokenizer = Tokenizer(default_base())
    prompts = [
        tokenizer.encode(
            tokenizer.apply_chat_template([{"role": "user", "content": message}]), add_special_tokens=False
        )
        for message in messages(options.prompts)
    ]
    exact, fast = engine("reference", "none"), engine("native", options.quantize)
    found = find_divergences(exact, fast, prompts, options.tokens)
    exact.close()
    fast.close()
    print(f"{len(prompts) - len(found)} of {len(prompts)} replies of {options.tokens} tokens are the same")
    for one in sorted(found, key=lambda one: one.margin):
        print(f"prompt {one.prompt:3d} parts at token {one.token:3d}, margin {one.margin:.5f} nats")
    if options.json:
        record = {**facts, "prompts": len(prompts), "tokens": options.tokens, "quantize": options.quantize}
        record |= {"same": len(prompts) - len(found), "divergences": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def messages(count: int) -> list[str]:
    """So many held-out inputs of the demo adapters, every third from each."""
    files = sorted(HELD_OUT.glob("*/heldout.jsonl"))
    texts = [[json.loads(line)["input"] for line in file.read_text(encoding="utf-8").splitlines()] for file in files]
    return [texts[index % len(texts)][index // len(texts)] for index in range(count)]


def engine(kernels: str, quantize: str) -> Engine:
    flags: dict[str, Setting] = {"model.kernels": kernels, "model.quantize": quantize, "engine.max_model_len": 1024}
    return build_engine(load_config(flags=flags), lambda line: None)[0]


if __name__ == "__main__":
    main()
