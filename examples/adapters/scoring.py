"""Shared scoring harness of the example adapters.

Every adapter folder has a ``score.py`` that hands this module a *judge*, a function that turns
held-out examples and the answers to them into named numbers. This module does the rest:

* reads the held-out files (one ``{"input": ..., "expected": ...}`` object a line),
* asks a running server (``--url``), once as the base model and once with the adapter, or asks
  the two models in this process through transformers and PEFT (``--offline ADAPTER_DIR``),
* measures how much of the held-out wording also occurs in the training text,
* prints the two scores side by side and, with ``--json``, writes them to a file.

The served path needs only the standard library.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_BASE = Path("~/.cache/manylora/bases/SmolLM2-135M-Instruct")
OVERLAP_WORDS = 8


@dataclass(frozen=True)
class Example:
    """One held-out input and the answer that counts as right."""

    input: str
    expected: str


Judge = Callable[[Sequence[Example], Sequence[str]], dict[str, float]]
"""Scores answers (second argument, same order as the examples); every number is a share in 0..1."""

Answerer = Callable[[Sequence[str]], list[str]]
"""Answers a list of user messages, each on its own, in order."""


@dataclass(frozen=True)
class Task:
    """What one adapter folder has to say about how it is scored.

    ``held_out`` names the files in ``folder`` that are scored together by default.
    ``training_inputs`` returns the user messages of the training set; it is called only for the
    overlap figure. ``explain`` may describe one wrong answer for ``--show-errors`` (return None
    when the answer is right).
    """

    folder: Path
    judge: Judge
    max_tokens: int
    training_inputs: Callable[[], Iterable[str]]
    explain: Callable[[Example, str], str | None] | None = None
    held_out: tuple[str, ...] = ("heldout.jsonl",)

    @property
    def name(self) -> str:
        """The adapter's model name on the server: its folder name."""
        return self.folder.name


def load_examples(path: Path) -> list[Example]:
    """Read a ``{"input", "expected"}`` JSON-lines file."""
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            record = json.loads(line)
            examples.append(Example(record["input"], record["expected"]))
    return examples


def ask_server(
    url: str,
    model: str,
    inputs: Sequence[str],
    *,
    max_tokens: int,
    concurrency: int = 8,
    timeout_s: float = 300.0,
) -> list[str]:
    """Answer every input through ``POST /v1/chat/completions``, ``concurrency`` requests at a time.

    ``model`` is an adapter's name, or the empty string for the base model.
    """
    endpoint = url.rstrip("/") + "/v1/chat/completions"

    def ask(text: str) -> str:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        request = urllib.request.Request(
            endpoint, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                payload = json.load(reply)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise RuntimeError(f"{endpoint} answered {error.code} for model {model!r}: {detail}") from error
        return payload["choices"][0]["message"]["content"] or ""

    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        return list(pool.map(ask, inputs))


def offline_answerer(base: Path, adapter: Path | None, *, max_tokens: int, batch_size: int = 16) -> Answerer:
    """Load the base model, with ``adapter`` on it when given, and return a greedy answerer (CPU, float32)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.eval()

    def answer(inputs: Sequence[str]) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in inputs
        ]
        answers = [""] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            encoded = tokenizer(
                [prompts[index] for index in batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                output = model.generate(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            for index, row in zip(batch, output[:, encoded["input_ids"].shape[1] :], strict=True):
                answers[index] = tokenizer.decode(row, skip_special_tokens=True)
        return answers

    return answer


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def overlap_share(inputs: Sequence[str], training_texts: Iterable[str], words: int = OVERLAP_WORDS) -> float:
    """Share of ``inputs`` that have ``words`` consecutive words in common with any training text."""
    seen: set[tuple[str, ...]] = set()
    for text in training_texts:
        tokens = _words(text)
        seen.update(tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1))

    def shared(text: str) -> bool:
        tokens = _words(text)
        return any(tuple(tokens[i : i + words]) in seen for i in range(len(tokens) - words + 1))

    return sum(map(shared, inputs)) / len(inputs) if inputs else 0.0


def build_parser(task: Task) -> argparse.ArgumentParser:
    """The command line that every ``score.py`` shares."""
    parser = argparse.ArgumentParser(description=f"Score the {task.name} adapter against its base model.")
    parser.add_argument("--url", default=DEFAULT_URL, help="server to ask (default: %(default)s)")
    parser.add_argument("--offline", type=Path, metavar="ADAPTER_DIR", help="score this adapter without a server")
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE, help="base model folder, for --offline")
    files = [task.folder / name for name in task.held_out]
    parser.add_argument("--heldout", type=Path, nargs="+", default=files, metavar="FILE", help="held-out examples")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight (default: %(default)s)")
    parser.add_argument("--skip-base", action="store_true", help="score only the adapter")
    parser.add_argument("--show-errors", action="store_true", help="print every wrong answer of the adapter")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the scores to this file")
    return parser


def run(task: Task, argv: Sequence[str] | None = None) -> int:
    """Score ``task`` as the command line says, print the result and return an exit status."""
    args = build_parser(task).parse_args(argv)
    examples = [example for file in args.heldout for example in load_examples(file)]
    inputs = [example.input for example in examples]
    base = args.base.expanduser()

    def answerer(tuned: bool) -> Answerer:
        if args.offline is not None:
            return offline_answerer(base, args.offline if tuned else None, max_tokens=task.max_tokens)
        model = task.name if tuned else ""
        return lambda texts: ask_server(
            args.url, model, texts, max_tokens=task.max_tokens, concurrency=args.concurrency
        )

    report: dict[str, Any] = {
        "task": task.name,
        "examples": len(examples),
        "overlap_words": OVERLAP_WORDS,
        "overlap_share": overlap_share(inputs, task.training_inputs()),
        "served": args.offline is None,
    }
    for label in ("tuned",) if args.skip_base else ("base", "tuned"):
        answer = answerer(label == "tuned")
        started = time.perf_counter()
        try:
            answers = answer(inputs)
        except (OSError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        seconds = time.perf_counter() - started
        report[label] = task.judge(examples, answers) | {"seconds": round(seconds, 2)}
        if args.show_errors and label == "tuned" and task.explain is not None:
            for example, text in zip(examples, answers, strict=True):
                if problem := task.explain(example, text):
                    print(f"- {example.input}\n    {problem}")

    print_report(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def print_report(report: dict[str, Any]) -> None:
    """Print the scores of ``run`` as a small table."""
    labels = [label for label in ("base", "tuned") if label in report]
    print(f"{report['task']}: {report['examples']} held-out examples, through {'HTTP' if report['served'] else 'PEFT'}")
    print(f"  {'':<28}" + "".join(f"{label:>10}" for label in labels))
    for key in report[labels[0]]:
        print(f"  {key:<28}" + "".join(f"{report[label][key]:>10.3f}" for label in labels))
    share = report["overlap_share"]
    print(f"  held-out inputs sharing {report['overlap_words']} words in a row with training text: {share:.1%}")
