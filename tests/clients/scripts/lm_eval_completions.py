"""Runs in the environment of `lm-eval`, with a file of facts as its argument: a task of its own, without a data set."""

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from tests.clients.scripts.cases import FACTS, case, run_cases

QUESTIONS: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "choices": [" Paris", " purple", " seven"], "answer": 0},
    {"prompt": "Two plus two is", "choices": [" orange", " four", " Tuesday"], "answer": 1},
]
SCRATCH = Path(FACTS["scratch"])


def evaluate(task: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the results of a task, asked of the base over /v1/completions, and the texts that were its answers."""
    data = SCRATCH / "questions.json"
    data.write_text(json.dumps(QUESTIONS), encoding="utf-8")
    config = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        **task,
    }
    arguments = {
        "model": FACTS["base"],
        "base_url": f"{FACTS['url']}/v1/completions",
        "tokenizer": FACTS["base_dir"],
        "tokenized_requests": False,
        "num_concurrent": 2,
        "max_retries": 1,
    }
    found = evaluator.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[config],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["own"], key=lambda each: each["doc_id"])
    return dict(found["results"]["own"]), [str(each["filtered_resps"][0]) for each in samples]


def completed(prompt: str) -> str:
    """Return the most probable four tokens after a prompt, up to a full stop, without lm-eval."""
    body = {"model": FACTS["base"], "prompt": prompt, "max_tokens": 4, "temperature": 0, "stop": ["."]}
    headers = {"Authorization": f"Bearer {FACTS['key']}", "Content-Type": "application/json"}
    asked = Request(f"{FACTS['url']}/v1/completions", json.dumps(body).encode(), headers)
    with urlopen(asked, timeout=60) as reply:
        return str(json.load(reply)["choices"][0]["text"])


@case
def choices_are_scored_by_their_log_probabilities() -> None:
    results, _ = evaluate(
        {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    assert results["acc,none"] == 1.0


@case
def texts_are_generated_until_a_stop_string() -> None:
    results, texts = evaluate(
        {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    expected = [completed(each["prompt"]) for each in QUESTIONS]
    assert texts == expected
    right = [text == each["choices"][each["answer"]] for text, each in zip(texts, QUESTIONS, strict=True)]
    assert results["exact_match,none"] == sum(right) / len(right)


if __name__ == "__main__":
    import os

    os.environ["OPENAI_API_KEY"] = FACTS["key"]
    run_cases("lm_eval")
