"""Runs in the environment of `lm-eval`, with a file of facts as its argument.

Tasks of our own, of documents in JSONL, are evaluated twice: as `local-completions` over HTTP, and as lm-eval's own
`hf` model of the same weights in float32. Both read the same token ids.
"""

import json
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from tests.clients.scripts.cases import FACTS, case, run_cases

CLASSES = ("billing", "delivery", "technical", "cancellation")
TICKETS = {
    "Where's my package?": "delivery",
    "The app crashes whenever I open the map.": "technical",
    "You charged my card two times this month.": "billing",
    "Please end my membership by the end of May.": "cancellation",
    "The courier left the box at the wrong house.": "delivery",
    "I'd like my money back and my account closed.": "cancellation",
    "There is a fee on my invoice that I don't know.": "billing",
}
SCRATCH = Path(FACTS["scratch"])
MOST_APART = 0.1
"""Difference of two log-probabilities of a choice: the server has keys and values in bf16."""
evaluator.add_env_info = lambda _: None  # it runs pip, for a report that no case reads


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of the two tasks, with answers in the order of the documents.

    accuracy   share of the documents whose class is the likeliest choice
    logprobs   of each document's choices
    exact      share of the documents whose class is the generated text
    texts      that were generated
    """

    accuracy: float
    logprobs: list[list[float]]
    exact: float
    texts: list[str]


def documents() -> Path:
    """Write the documents of the tasks, a prompt in the base's chat format and the place of its class a line."""
    file = SCRATCH / "tickets.jsonl"
    prompts = {FACTS["prompt"].replace(FACTS["question"], text): name for text, name in TICKETS.items()}
    lines = [{"prompt": text, "choices": CLASSES, "answer": CLASSES.index(name)} for text, name in prompts.items()]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return file


def tasks() -> list[dict[str, Any]]:
    own = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents())}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
    }
    choices = {
        "task": "choices",
        "output_type": "multiple_choice",
        "target_delimiter": "",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    texts = {
        "task": "texts",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return [own | choices, own | texts]


@cache
def served(adapter: str) -> Evaluation:
    """Evaluate the server; without an adapter, its base."""
    arguments = {
        "model": adapter or FACTS["base"],
        "base_url": f"{FACTS['url']}/v1/completions",
        "tokenizer": FACTS["base_dir"],
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "num_concurrent": 2,
        "max_retries": 1,
    }
    return evaluated("local-completions", arguments)


@cache
def computed(peft: str) -> Evaluation:
    """Evaluate transformers; `peft` is the folder of an adapter, or empty."""
    arguments = {"pretrained": FACTS["base_dir"], "dtype": "float32", "device": "cpu", "batch_size": 8}
    return evaluated("hf", {**arguments, "peft": peft} if peft else arguments)


def evaluated(model: str, arguments: dict[str, Any]) -> Evaluation:
    """Evaluate a kind of lm-eval's models."""
    found = evaluator.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=tasks(),
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    answers = {
        task: [each["filtered_resps"] for each in sorted(samples, key=lambda each: each["doc_id"])]
        for task, samples in found["samples"].items()
    }
    return Evaluation(
        accuracy=found["results"]["choices"]["acc,none"],
        logprobs=[[float(value) for value, _ in each] for each in answers["choices"]],
        exact=found["results"]["texts"]["exact_match,none"],
        texts=[str(text) for [text] in answers["texts"]],
    )


def difference(one: Evaluation, other: Evaluation) -> float:
    """Return the largest difference of two log-probabilities of one choice."""
    pairs = zip(chain(*one.logprobs), chain(*other.logprobs), strict=True)
    return max(abs(mine - theirs) for mine, theirs in pairs)


@case
def choices_of_the_base_score_as_in_transformers() -> None:
    ours, theirs = served(""), computed("")
    assert difference(ours, theirs) < MOST_APART, (ours.logprobs, theirs.logprobs)
    assert ours.accuracy == theirs.accuracy
    assert 0 < ours.accuracy < 1


@case
def choices_of_an_adapter_score_as_in_peft() -> None:
    """The adapter ends behind a choice, with a token that is no part of it."""
    ours, theirs = served(FACTS["adapter"]), computed(FACTS["upload"])
    assert difference(ours, theirs) < MOST_APART, (ours.logprobs, theirs.logprobs)
    assert ours.accuracy == theirs.accuracy > served("").accuracy
    assert difference(ours, served("")) > 10 * MOST_APART


@case
def texts_are_those_of_transformers_and_peft() -> None:
    base, tuned = served(""), served(FACTS["adapter"])
    assert base.texts == computed("").texts
    assert tuned.texts == computed(FACTS["upload"]).texts
    assert (base.exact, tuned.exact) == (computed("").exact, computed(FACTS["upload"]).exact)
    right = [text == name for text, name in zip(tuned.texts, TICKETS.values(), strict=True)]
    assert tuned.exact == sum(right) / len(right) > base.exact


if __name__ == "__main__":
    import os

    os.environ["OPENAI_API_KEY"] = FACTS["key"]
    run_cases("lm_eval")
