"""B1, B2, B3: a 7B in its real shape, in int8 and in int4, on ours and on llama.cpp's server, in turn.

    python -m benchmarks.serving.seven_b [--peers DIR] [--into DIR] [--storage Q4_0,Q8_0] [--rounds 3] [--json FILE]

The weights are random, and both servers read the same GGUF file: Q4_0 runs here as int4, Q8_0 as int8. Neither server
holds it in a wider form. Eight adapters of rank 16 on all projections of a block have a stream each. The work of a
round is fixed, so that a slow server's requests end, too. Each round starts every server anew, ours without drafts of
tokens; the order turns from round to round. Needs 12 GB of disk and 14 GB of memory.

B1  time per token of one stream ÷ (bytes of the weights ÷ read bandwidth of all threads, the mean of one measured just
    before the stream and one just after it, beside the idle server: a shared machine's bandwidth changes in minutes)
B2  time per token of one stream, and tokens/s of eight streams with eight adapters, ours ÷ llama.cpp's
B3  tokens/s of a prompt of 512 tokens, ours ÷ llama.cpp's
"""

import argparse
import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.random_gguf import LlamaShape, write_random_gguf
from benchmarks.serving.servers import LlamaCpp
from manylora.bench.load import Figures, figures_of, run_each
from manylora.bench.machine import describe
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Fields, Manylora, Running, Server, serving
from manylora.bench.statistics import extremes, median
from manylora.bench.workloads import Workload
from manylora.clock import SystemClock
from manylora.config.folders import cache_dir
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.projections import Projection
from manylora.models.spec import parse_spec
from manylora.system.resources import find_resources

FORMS = {"Q4_0": "int4", "Q8_0": "int8"}
ADAPTERS, RANK = 8, 16
ONE, EIGHT = Workload(128, 64, 1), Workload(128, 64, ADAPTERS)
PROMPT = Workload(512, 2, 1)
ONES, PROMPTS = 2, 2


@dataclass(frozen=True)
class Round:
    """One start of one server.

    start_s          seconds from the start of the process to its first token
    peak_bytes       largest resident memory of the server's processes from the start to the first token
    read_bytes_s     read bandwidth before and after the one stream, their mean
    one_token_ms     time per token of one stream, base alone
    eight_tokens_s   tokens per second of eight requests at one time, each on its own adapter, prompts included
    prompt_tokens_s  tokens of the prompt per second, until the first token
    """

    start_s: float
    peak_bytes: int
    read_bytes_s: float
    one_token_ms: float
    eight_tokens_s: float
    prompt_tokens_s: float


class LlamaCppFile(LlamaCpp):
    """llama.cpp's server on the GGUF file in the base's folder, for eight streams."""

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = super().command(port, base, adapters)
        for option, value in (("--parallel", ADAPTERS), ("--ctx-size", 1024 * ADAPTERS)):
            command[command.index(option) + 1] = str(value)
        return command

    def _converted(self, folder: Path, base: Path | None = None) -> Path:
        return next(folder.glob("*.gguf")) if base is None else super()._converted(folder, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=cache_dir() / "peers", help="where llama.cpp is installed")
    parser.add_argument("--into", type=Path, default=cache_dir() / "random", help="where the models are written")
    parser.add_argument("--storage", default="Q4_0,Q8_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    result: dict[str, object] = {**describe()}
    for storage in options.storage.split(","):
        base = make_base(options.into, storage)
        result[FORMS[storage]] = compare(base, storage, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make_base(into: Path, storage: str) -> Path:
    """Return the folder of the random 7B in this form; write it unless it is there."""
    folder = into / f"llama-2-7b-{storage}"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {folder}", flush=True)
        write_random_gguf(folder / "model.gguf", storage)
        (folder / "config.json").write_text(json.dumps(config_of(LlamaShape())), encoding="utf-8")
    return folder


def config_of(shape: LlamaShape) -> dict[str, object]:
    """Return the config.json of a shape, which the converter of adapters reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


def compare(base: Path, storage: str, options: argparse.Namespace) -> dict[str, object]:
    spec = parse_spec(config_of(LlamaShape()), {})
    native = NativeLibrary(find_resources().threads)
    weight_bytes = next(base.glob("*.gguf")).stat().st_size
    servers: list[Server] = [
        Manylora(f"model.quantize={FORMS[storage]}", "engine.max_model_len=1024", "engine.guess_tokens=0")
    ]
    if (options.peers / "llama" / "out" / "bin" / "llama-server").exists():
        servers.append(LlamaCppFile(options.peers / "llama"))
    rounds: dict[str, list[Round]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "adapters"
        names = write_adapters(root, spec, ADAPTERS, (RANK,), base.name, tuple(Projection))
        adapters = [root / name for name in names]
        for number in range(options.rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                with serving(server, Path(scratch) / "log", base=base, adapters=adapters) as running:
                    one = measure(server, running, base, adapters, spec.vocab, native)
                rounds[server.name].append(one)
                print(f"{storage} round {number + 1}  {server.name:<12}{one}", flush=True)
    return summary(rounds, weight_bytes)


def measure(
    server: Server, running: Running, base: Path, adapters: Sequence[Path], vocab: int, native: NativeLibrary
) -> Round:
    peak = peak_bytes(running)
    base_alone = [server.base_fields(base)]
    mixed = [server.adapter_fields(adapters, index) for index in range(len(adapters))]
    before = native.measure_bandwidth(repeats=5)
    one = ended_work(running, ONE, ONES * base_alone, vocab)
    after = native.measure_bandwidth(repeats=5)
    eight = ended_work(running, EIGHT, mixed, vocab)
    prompts = asyncio.run(run_each(running.url, PROMPT, PROMPTS * base_alone, vocab))
    for figures in (one, eight):
        if figures.errors:
            raise SystemExit(f"{server.name}: {figures.errors} errors, such as {figures.first_errors}")
    prompt_tokens_s = PROMPT.prompt / median([answer.pieces_s[0] - answer.sent_s for answer in prompts])
    return Round(
        round(running.first_token_s, 1),
        peak,
        (before + after) / 2,
        one.token_time_median_ms,
        eight.output_tokens_per_s,
        round(prompt_tokens_s, 1),
    )


def ended_work(running: Running, workload: Workload, targets: Sequence[Fields], vocab: int) -> Figures:
    """Send one request for each of the targets, wait for all, and return the figures of that time."""
    clock = SystemClock()
    begun_s = clock.monotonic_s()
    answers = asyncio.run(run_each(running.url, workload, targets, vocab, clock))
    return figures_of(answers, begun_s, clock.monotonic_s())


def peak_bytes(running: Running) -> int:
    """Return the sum of the largest resident sizes of the server's processes, in bytes (Linux's `VmHWM`)."""
    total = 0
    for process in running.processes():
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return total


def summary(rounds: dict[str, list[Round]], weight_bytes: int) -> dict[str, object]:
    """Return the figures of each server and the ratios of this run."""
    fields = Round.__dataclass_fields__
    ours = rounds[Manylora.name]
    floors = [1e3 * weight_bytes / one.read_bytes_s for one in ours]
    found: dict[str, object] = {
        "weight_bytes": weight_bytes,
        "floor_ms": extremes(floors),
        "servers": {
            name: {field: extremes([getattr(one, field) for one in own]) for field in fields}
            for name, own in rounds.items()
        },
    }
    found["B1"] = extremes([one.one_token_ms / floor for one, floor in zip(ours, floors, strict=True)])
    for name, theirs in rounds.items():
        if name != Manylora.name:
            pairs = list(zip(ours, theirs, strict=True))
            found[f"B2 time per token ÷ {name}"] = extremes([a.one_token_ms / b.one_token_ms for a, b in pairs])
            found[f"B2 tokens/s with 8 adapters ÷ {name}"] = extremes(
                [a.eight_tokens_s / b.eight_tokens_s for a, b in pairs]
            )
            found[f"B3 prompt tokens/s ÷ {name}"] = extremes([a.prompt_tokens_s / b.prompt_tokens_s for a, b in pairs])
    for name, value in found.items():
        if name.startswith("B"):
            print(f"{name:<40}{value}")
    print(f"peak memory of ours: {median([one.peak_bytes for one in ours]) / 1e9:.2f} GB of {weight_bytes / 1e9:.2f}")
    return found


if __name__ == "__main__":
    main()
