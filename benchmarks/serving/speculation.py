"""What guessing ahead by prompt look-up does to the time of a token, with and without in turn in one run.

    python -m benchmarks.serving.speculation [--streams 1 2 4] [--guess-tokens K] [--guess-width N] [--json FILE]

Workloads: `copy`, `edit` and `summarise` are chats about the text or the code below, greedy; `story` (temperature 0.8)
has nothing to repeat; `random greedy` and `random sampled` (temperature 1) go on from 128 random token ids. 96 tokens,
end-of-sequence ignored, the same prompt and another seed for each stream. A round runs all streams of a
workload once with `Request.speculation` and once without, on the same engine, and asserts that their tokens are equal.
Times are of decoding alone: from the step after the last first token to the end. Ratio is with ÷ without, by round.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from manylora.bench.machine import describe
from manylora.config.groups.model import DEFAULT_BASE
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, mint_request_id
from manylora.models.text.tokenizer import Tokenizer
from manylora.wiring.engine import build_engine

TOKENS = 96
ROUNDS = 7

TEXT = (
    "The harbour was built in 1871 by a company that had never built one before. Its two stone arms reach four hundred "
    "metres into the bay, and the eastern one carries the light that ships see first. In the winter of 1902 a storm "
    "took sixty metres of the western arm; the town rebuilt it in a single summer, with stone from the same quarry."
)
CODE = """def total(orders):
    result = 0
    for order in orders:
        if order.is_paid:
            result += order.price * order.count
    return result


def average(orders):
    paid = [order for order in orders if order.is_paid]
    return total(orders) / len(paid)
"""
CHATS = {
    "copy": f"Repeat this text word for word:\n\n{TEXT}",
    "edit": f"Rename `orders` to `sales` in this code and write all of it again:\n\n```python\n{CODE}```",
    "summarise": f"Summarise this text in two sentences:\n\n{TEXT}",
    "story": "Write a story about a fox and a lighthouse.",
}


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    tokens: tuple[int, ...]
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over a workload: seconds of decoding, tokens and steps in them, and every token for comparison."""

    seconds: float
    tokens: int
    steps: int
    guessed: int
    right: int
    output: list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=DEFAULT_BASE, help="base model: a name or a directory")
    parser.add_argument("--streams", type=int, nargs="+", default=[1], help="streams side by side")
    parser.add_argument("--guess-tokens", type=int, help="engine.guess_tokens; default: the setting's own")
    parser.add_argument("--guess-width", type=int, help="engine.guess_width; default: the setting's own")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()

    facts = describe()
    flags = {"model.base": options.base, "engine.prefix_cache": False, "engine.max_model_len": 512}
    if options.guess_tokens is not None:
        flags["engine.guess_tokens"] = options.guess_tokens
    if options.guess_width is not None:
        flags["engine.guess_width"] = options.guess_width
    config = load_config(flags=flags)
    engine, served = build_engine(config, print)
    setting = {"guess_tokens": config.engine.guess_tokens, "guess_width": config.engine.guess_width}
    print(f"{facts['processor']}\n{setting}\n")
    workloads = _workloads(Path(served.base_dir), served.vocab_size)
    results = [
        measure(engine, workload, streams, options.rounds) for streams in options.streams for workload in workloads
    ]
    if options.json:
        options.json.write_text(json.dumps({**facts, **setting, "results": results}, indent=1) + "\n")


def measure(engine: Engine, workload: Workload, streams: int, rounds: int) -> dict[str, object]:
    """Alternate between the two sides; which of them goes first alternates as well."""
    runs: dict[bool, list[Run]] = {True: [], False: []}
    _run(engine, workload, streams, speculation=False)
    for number in range(rounds):
        for speculation in (True, False) if number % 2 else (False, True):
            runs[speculation].append(_run(engine, workload, streams, speculation=speculation))
        assert runs[True][-1].output == runs[False][-1].output, "speculation changed a token"
    ratios = sorted(_per_token(a) / _per_token(b) for a, b in zip(runs[True], runs[False], strict=True))
    last = runs[True][-1]
    result = {
        "workload": workload.name,
        "streams": streams,
        "tokens_per_step": round(last.tokens / last.steps / streams, 2),
        "guessed": last.guessed,
        "guessed_right": last.right,
        "with_ms_per_token": _spread(runs[True]),
        "without_ms_per_token": _spread(runs[False]),
        "ratio": {
            "min": round(ratios[0], 3),
            "median": round(ratios[len(ratios) // 2], 3),
            "max": round(ratios[-1], 3),
        },
    }
    print(
        f"{workload.name:15s} {streams:2d} streams: {result['tokens_per_step']:.2f} tokens a step and stream, "
        f"{last.right}/{last.guessed} guesses right, ms a token {result['with_ms_per_token']} "
        f"without {result['without_ms_per_token']}, ratio {result['ratio']}",
        flush=True,
    )
    return result


def _run(engine: Engine, workload: Workload, streams: int, *, speculation: bool) -> Run:
    requests = [
        Request(
            id=mint_request_id(),
            flow=Flow("benchmark"),
            salt="",
            tokens=workload.tokens,
            adapter=None,
            sampling=SamplingParams(temperature=workload.temperature, seed=seed),
            stop=StopParams(max_new_tokens=TOKENS, ignore_eos=True),
            speculation=speculation,
        )
        for seed in range(streams)
    ]
    output: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while not all(output.values()):
        for token in engine.step().tokens:
            output[token.request_id].append(token.token_id)
    before, tokens = engine.stats(), 0
    start = time.perf_counter()
    while engine.has_work:
        for token in engine.step().tokens:
            output[token.request_id].append(token.token_id)
            tokens += 1
    seconds = time.perf_counter() - start
    after = engine.stats()
    return Run(
        seconds,
        tokens,
        after.steps - before.steps,
        after.draft_tokens - before.draft_tokens,
        after.accepted_tokens - before.accepted_tokens,
        list(output.values()),
    )


def _workloads(base_dir: Path, vocab: int) -> list[Workload]:
    tokenizer = Tokenizer(base_dir)
    chats = [
        Workload(
            name,
            tuple(tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": content}]))),
            temperature=0.8 if name == "story" else 0.0,
        )
        for name, content in CHATS.items()
    ]
    source = random.Random(1)
    noise = tuple(source.randrange(3, vocab) for _ in range(128))
    return [*chats, Workload("random greedy", noise), Workload("random sampled", noise, temperature=1.0)]


def _per_token(run: Run) -> float:
    return 1e3 * run.seconds / run.tokens


def _spread(runs: list[Run]) -> dict[str, float]:
    """Minimum, median and maximum, in milliseconds."""
    ordered = sorted(map(_per_token, runs))
    return {
        "min": round(ordered[0], 3),
        "median": round(ordered[len(ordered) // 2], 3),
        "max": round(ordered[-1], 3),
    }


if __name__ == "__main__":
    main()
