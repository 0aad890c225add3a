"""Scores the base model and the `support-triage` adapter on held-out tickets.

Over HTTP against a running server (the adapter's folder name is its model name; the empty name is the base), or
without one::

    python score.py --url http://127.0.0.1:8080 --json score.json
    python score.py --offline . --base DIR
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from generate import generate
from phrases import FOLDER, LABELS

DEFAULT_BASE_DIR = Path("~/.cache/manylora/bases/SmolLM2-135M-Instruct")
MAX_TOKENS = 8
OVERLAP_WORDS = 8

Ask = Callable[[list[str]], list[str]]


def ask_server(url: str, model: str, concurrency: int) -> Ask:
    """A function that answers tickets through an OpenAI-style server."""

    def one(ticket: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": ticket}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        request = urllib.request.Request(
            f"{url.rstrip('/')}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.load(response)["choices"][0]["message"]["content"] or ""
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:300]
            raise SystemExit(f"the server answered {error.code} for model {model!r}: {detail}") from error
        except urllib.error.URLError as error:
            raise SystemExit(f"no server at {url}: {error.reason}") from error

    def many(tickets: list[str]) -> list[str]:
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(one, tickets))

    return many


def ask_offline(base_dir: Path, adapter_dir: Path | None) -> Ask:
    """A function that answers tickets with transformers and PEFT in this process."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base_dir = base_dir.expanduser()
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32).eval()
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, adapter_dir).merge_and_unload()

    @torch.inference_mode()
    def many(tickets: list[str]) -> list[str]:
        answers = []
        for ticket in tickets:
            chat = [{"role": "user", "content": ticket}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            out = model.generate(**ids, max_new_tokens=MAX_TOKENS, do_sample=False)
            answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return answers

    return many


def measure(rows: list[dict[str, str]], answers: list[str]) -> dict[str, Any]:
    """Accuracy, recall per class and the confused pairs. An answer counts when it is exactly the label."""
    given = [answer.strip() for answer in answers]
    total = Counter(row["label"] for row in rows)
    right = Counter(row["label"] for row, answer in zip(rows, given, strict=True) if answer == row["label"])
    pairs = Counter(
        f"{row['label']} -> {answer if answer in LABELS else '(no label)'}"
        for row, answer in zip(rows, given, strict=True)
        if answer != row["label"]
    )
    return {
        "accuracy": sum(right.values()) / len(rows),
        "recall": {label: right[label] / total[label] for label in LABELS if total[label]},
        "answered": {label: given.count(label) for label in LABELS},
        "confusions": dict(pairs.most_common()),
    }


def _grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + OVERLAP_WORDS]) for i in range(len(words) - OVERLAP_WORDS + 1)}


def overlap(tickets: Iterable[str], training: Iterable[str]) -> float:
    """Share of tickets that have `OVERLAP_WORDS` words in a row in common with some training ticket."""
    known: set[tuple[str, ...]] = set()
    for text in training:
        known |= _grams(text)
    tickets = list(tickets)
    return sum(bool(_grams(ticket) & known) for ticket in tickets) / len(tickets)


def report(name: str, scores: dict[str, Any], counts: Counter[str]) -> None:
    """Print one model's scores."""
    print(f"{name}: accuracy {scores['accuracy']:.3f} ({scores['seconds']:.1f} s)")
    for label, recall in scores["recall"].items():
        print(f"  {label:<16} {counts[label]:>3} tickets, recall {recall:.2f}, answered {scores['answered'][label]}")
    if scores["confusions"]:
        print("  confused: " + ", ".join(f"{pair} ({times})" for pair, times in scores["confusions"].items()))


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="server to ask (default: %(default)s)")
    parser.add_argument("--model", default=FOLDER.name, help="the adapter's name there (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--offline", type=Path, metavar="ADAPTER_DIR", help="score this adapter without a server")
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE_DIR, help="base model folder, for --offline")
    parser.add_argument("--heldout", type=Path, default=FOLDER / "heldout.jsonl")
    parser.add_argument("--skip-base", action="store_true", help="score the adapter only")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the scores to this file")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.heldout.read_text(encoding="utf-8").splitlines() if line.strip()]
    tickets = [row["ticket"] for row in rows]
    counts = Counter(row["label"] for row in rows)
    result: dict[str, Any] = {"tickets": len(rows), "counts": dict(counts), "served": args.offline is None}
    for name in ("tuned",) if args.skip_base else ("base", "tuned"):
        tuned = name == "tuned"
        if args.offline:
            ask = ask_offline(args.base, args.offline if tuned else None)
        else:
            ask = ask_server(args.url, args.model if tuned else "", args.concurrency)
        began = time.perf_counter()
        answers = ask(tickets)
        result[name] = {**measure(rows, answers), "seconds": round(time.perf_counter() - began, 2)}
        report(name, result[name], counts)
    train, _ = generate()
    result["overlap"] = overlap(tickets, (text for text, _ in train))
    print(f"tickets that share {OVERLAP_WORDS} words in a row with training text: {result['overlap']:.3f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
