"""Latency against load: `chat` on the base with 1 to 32 streams, ours and llama.cpp's in turn.

python -m benchmarks.serving.streams [--peers DIR] [--servers manylora,llama.cpp] [--seconds 10] [--json FILE]
"""

import argparse
import asyncio
import dataclasses
import json
import tempfile
from pathlib import Path

from benchmarks.serving.servers import installed_peers
from manylora.bench.load import drawn, run_load
from manylora.bench.machine import describe
from manylora.bench.servers import Manylora, Server, default_base, serving
from manylora.bench.workloads import WORKLOADS
from manylora.config.folders import cache_dir
from manylora.models.spec import read_spec

STREAMS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=cache_dir() / "peers", help="where they are installed")
    parser.add_argument("--servers", default="manylora,llama.cpp", help="names, by comma")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base = default_base()
    spec = read_spec(base)
    servers: list[Server] = [Manylora(), *installed_peers(options.peers)]
    results: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for server in servers:
            if server.name not in options.servers.split(","):
                continue
            results[server.name] = []
            with serving(server, Path(scratch) / "log", base=base) as running:
                for streams in STREAMS:
                    workload = dataclasses.replace(WORKLOADS["chat"], streams=streams)
                    targets = drawn([server.base_fields(base)])
                    figures = asyncio.run(run_load(running.url, workload, targets, spec.vocab, options.seconds))
                    results[server.name].append({"streams": streams, **dataclasses.asdict(figures)})
                    print(
                        f"{server.name:<12}{streams:3d} streams  {figures.output_tokens_per_s:7.1f} tokens/s   "
                        f"first token {figures.first_token_median_ms:7.0f} ms   "
                        f"{figures.token_time_median_ms:6.1f} ms per token",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
