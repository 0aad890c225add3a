"""A context of 100,000 tokens: host time of a step, gaps of other streams, and logits at 32,768 positions.

    python -m benchmarks.arithmetic.long_context [--tokens N] [--positions N] [--blocks N] [--json FILE]

The base is a random Llama of two layers with YaRN angles for 131,072 positions, in a temporary folder.

host    time of `Engine.step` outside kernels while one sequence decodes, behind 1,000 and behind `--tokens` tokens; the
        two in turn, a block of steps each, without draft tokens
gaps    the longest gap of three streams while a prompt of `--tokens` is computed, in steps and ÷ their median step
        alone just before; and the most blocks in use
logits  the largest difference from transformers in float32, over its cache, of the last 64 of `--positions` rows
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.bench.machine import describe
from manylora.bench.servers import fresh_cache
from manylora.bench.statistics import extremes, median, milliseconds
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import StepEvents
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.kernels.operands import AttentionBatch, StepInput
from manylora.kernels.reference import ReferenceKernels
from manylora.models.llama import LlamaModel
from manylora.models.spec import read_spec
from manylora.models.weights import load_weights
from manylora.wiring.engine import build_engine

VOCAB, LONG, SHORT, STREAMS = 400, 100_000, 1_000, 1
CHUNK, LAST, DEEP = 256, 64, 32_768
ALONE_STEPS = 64
WINDOW = 131_072
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 8192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=LONG, help=f"of the long context: {2 * SHORT} to {WINDOW - 64}")
    parser.add_argument("--positions", type=int, default=DEEP, help=f"of the logits: a multiple of {CHUNK}")
    parser.add_argument("--blocks", type=int, default=8, help="blocks of steps of each length of context")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    if not 2 * SHORT <= options.tokens <= WINDOW - 64:
        parser.error(f"--tokens {options.tokens} is not between {2 * SHORT} and {WINDOW - 64}")
    if options.positions < CHUNK or options.positions % CHUNK or options.blocks < 1:
        parser.error(
            f"--positions {options.positions} must be a multiple of {CHUNK}, --blocks {options.blocks} positive"
        )
    record: dict[str, Any] = {**describe(), "tokens": options.tokens}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        oracle = save_base(base)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "host": lambda: host_times(base, Path(folder) / "host", options.tokens, options.blocks),
            "gaps": lambda: gaps(base, Path(folder) / "gaps", options.tokens),
            "logits": lambda: difference(base, oracle, options.positions),
        }
        for name, measure in parts.items():
            record[name] = measure()
            print(f"{name:8}{record[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def save_base(directory: Path) -> Any:  # transformers is not type-checked here
    """Save a random base of two layers, and return transformers' model of it."""
    torch.manual_seed(0)
    oracle = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=WINDOW,
            rope_parameters=YARN,
        )
    )
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    oracle.save_pretrained(directory)
    tiny = write_tiny_base(directory.parent / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, directory / name)
    return oracle.eval()


def open_engine(base: Path, folder: Path) -> Engine:
    """Open an engine with room for five long sequences. `folder` is made for it."""
    folder.mkdir()
    config = load_config(
        flags={
            "model.base": str(base),
            "model.cache_dir": str(fresh_cache(folder)),
            "engine.max_step_tokens": CHUNK,
            "engine.kv_bytes": 5 * WINDOW * 2 * 2 * 2 * 16 * 2,
            "engine.prefix_cache": True,
        },
        environ={},
    )
    return build_engine(config, lambda line: None)[0]


def submit(engine: Engine, length: int, budget: int, seed: int) -> RequestId:
    source = random.Random(seed)
    request = Request(
        id=mint_request_id(),
        flow=Flow("benchmark"),
        salt="",
        tokens=tuple(source.randrange(3, VOCAB) for _ in range(length)),
        adapter=None,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=budget, ignore_eos=True),
        speculation=False,
    )
    engine.submit(request)
    return request.id


def host_times(base: Path, folder: Path, tokens: int, blocks: int) -> dict[str, Any]:
    """Return milliseconds of host work of a step, and the ratio of each pair of blocks."""
    engine = open_engine(base, folder)
    profile = engine.start_profile()
    assert profile is not None, "the native kernels have a profile"
    times: dict[int, list[list[float]]] = {SHORT: [], tokens: []}
    for number in range(blocks + 1):  # the first block computes the prompts that the others find in the cache
        for length in times if number % 2 else reversed(times):
            for seed in range(STREAMS):
                submit(engine, length, 48, seed)
            found = []
            while engine.has_work:
                running, before = engine.stats().running, sum(profile.seconds().values())
                begun_s = time.perf_counter()
                events = engine.step()
                took_s = time.perf_counter() - begun_s
                if running == len(events.tokens) == STREAMS and not events.finished:
                    found.append(took_s - (sum(profile.seconds().values()) - before))
            if number:
                times[length].append(found[4:])
    engine.close()
    ratios = [
        sorted(long)[len(long) // 2] / sorted(short)[len(short) // 2]
        for short, long in zip(times[SHORT], times[tokens], strict=True)
    ]
    return {
        **{f"context_{length}": milliseconds(list(chain.from_iterable(found))) for length, found in times.items()},
        "ratio": extremes(ratios),
    }


def gaps(base: Path, folder: Path, tokens: int) -> dict[str, Any]:
    """Return the longest gap of running streams beside a long prompt, in its steps and ÷ their median step alone."""
    engine = open_engine(base, folder)
    # A step has eight rows of the prompt or more.
    streams = [submit(engine, 16, ALONE_STEPS + tokens // 4, seed) for seed in range(3)]
    for _ in range(4):
        engine.step()
    alone = [timed_step(engine)[0] for _ in range(ALONE_STEPS)]
    long = submit(engine, tokens, 4, 99)
    steps: list[float] = []
    moves: list[set[RequestId]] = []
    most_blocks = 0
    is_done = False
    while not is_done:
        took_ms, events = timed_step(engine)
        steps.append(took_ms)
        moves.append({event.request_id for event in events.tokens})
        most_blocks = max(most_blocks, engine.stats().kv_blocks_used)
        is_done = any(end.request_id == long for end in events.finished)
    engine.shutdown()
    tenth = max(1, len(steps) // 10)
    drawn = {stream: 4 + ALONE_STEPS + sum(stream in moved for moved in moves) for stream in streams}
    needed = sum(-(-count // 16) for count in (tokens + 4, *(16 + own for own in drawn.values())))
    waits = [wait for stream in streams for wait in waits_of([stream in moved for moved in moves], steps)]
    times = sorted(took_ms for _, took_ms in waits)
    return {
        "steps": len(steps),
        "longest_wait_steps": max(wait for wait, _ in waits),
        "step_ms": extremes(steps),
        "alone_ms": extremes(alone),
        "gap_over_alone": {
            "median": round(median(times) / median(alone), 2),
            "p99": round(times[int(0.99 * (len(times) - 1))] / median(alone), 2),
            "max": round(times[-1] / median(alone), 2),
        },
        "first_tenth_ms": extremes(steps[:tenth]),
        "last_tenth_ms": extremes(steps[-tenth:]),
        "most_blocks_over_needed": round(most_blocks / needed, 3),
    }


def timed_step(engine: Engine) -> tuple[float, StepEvents]:
    """Return the milliseconds of a step, and its events."""
    begun_s = time.perf_counter()
    events = engine.step()
    return 1e3 * (time.perf_counter() - begun_s), events


def waits_of(moved: Sequence[bool], steps: Sequence[float]) -> list[tuple[int, float]]:
    """Return each wait of a stream for its next token: steps before that of the token, and milliseconds with it.

    Args:  moved  whether the stream has a token of each step, which took so many milliseconds of `steps`; a wait that
                  the last step does not end counts as far as it goes
    """
    found: list[tuple[int, float]] = []
    wait, took_ms = 0, 0.0
    for has_token, step_ms in zip(moved, steps, strict=True):
        took_ms += step_ms
        if has_token:
            found.append((wait, took_ms))
            wait, took_ms = 0, 0.0
        else:
            wait += 1
    return [*found, (wait, took_ms)] if wait else found


def difference(base: Path, oracle: Any, length: int) -> dict[str, Any]:
    """Return the largest difference of the logits behind a deep context."""
    tokens = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(5))
    spec, kernels, size = read_spec(base), ReferenceKernels(), 16
    model = LlamaModel(spec, load_weights(base, spec, kernels), kernels)
    table = torch.randperm(length // size).int()[None]
    kv = kernels.new_kv(
        layers=spec.num_layers,
        num_blocks=length // size,
        block_size=size,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )
    cache, ours, theirs = None, torch.empty(0), torch.empty(0)
    with torch.inference_mode():
        for start in range(0, length, CHUNK):
            chunk, positions = tokens[start : start + CHUNK], torch.arange(start, start + CHUNK)
            out = oracle(chunk[None], past_key_values=cache, use_cache=True)
            cache, theirs = out.past_key_values, out.logits[0]
            slots = table[0, positions // size].long() * size + positions % size
            attention = AttentionBatch(positions.int(), slots, torch.zeros(CHUNK, dtype=torch.int32), table)
            step = StepInput(chunk, torch.arange(CHUNK), attention, kernels.prepare_lora(()))
            ours = model.forward(step, kv)
    found = float((ours - theirs)[-LAST:].abs().max())
    return {"positions": length, "rows": LAST, "largest_difference": found}


if __name__ == "__main__":
    main()
