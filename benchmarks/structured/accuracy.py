"""The held-out commands of the example adapter `intent-json`, with its schema and without, on one server.

    python -m benchmarks.structured.accuracy [--limit N] [--json FILE]

Shown are the judge's shares (exact answers, right intents, JSON objects) and how many answers the schema accepts.
"""

import argparse
import importlib
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs

from benchmarks.structured.schemas import form
from manylora.bench.machine import describe
from manylora.bench.servers import Manylora, default_base, serving

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "adapters" / "intent-json"
STREAMS = 8
TOKENS = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="the first so many commands alone")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    score = importlib.import_module("score")
    examples = importlib.import_module("scoring").load_examples(FOLDER / "heldout.jsonl")[: options.limit]
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    facts, base = describe(), default_base()
    result: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Manylora(), Path(scratch) / "log", base=base, adapters=[FOLDER]) as running,
        httpx2.Client(base_url=running.url, timeout=120) as client,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        for side, fields in (("without", {}), ("with", form(schema))):

            def answer(command: str, fields: dict[str, Any] = fields) -> str:
                body = {"model": FOLDER.name, "messages": [{"role": "user", "content": command}], **fields}
                reply = client.post("/v1/chat/completions", json={**body, "max_tokens": TOKENS, "temperature": 0})
                return str(reply.raise_for_status().json()["choices"][0]["message"]["content"])

            answers = list(pool.map(answer, [example.input for example in examples]))
            values = [score.parse(text) for text in answers]
            accepted = sum(value is not None and jsonschema_rs.is_valid(schema, value) for value in values)
            result[side] = {**score.judge(examples, answers), "schema": accepted / len(examples)}
            print(f"{side:<8} { ({name: round(share, 4) for name, share in result[side].items()}) }", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**facts, "commands": len(examples), "shares": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
