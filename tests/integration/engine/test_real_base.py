"""The default base and the demo adapters: real weights, against transformers + PEFT and against their own tasks."""

import json
from pathlib import Path

import pytest
import torch

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.config.settings import load_config
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.models.text.tokenizer import Tokenizer
from manylora.wiring.engine import build_engine
from tests.support.forward import load_model, place, run

pytestmark = pytest.mark.base

TICKETS = 48
"""Held-out tickets, six a class: enough to see a broken adapter path; the whole set is scored by its own script."""


def demo_adapters(root: Path) -> list[Path]:
    return sorted(file.parent for file in root.glob("*/adapter_model.safetensors"))


def test_there_are_three_demo_adapters(demo_root: Path) -> None:
    assert len(demo_adapters(demo_root)) >= 3


def test_logits_equal_the_oracles_in_float32(base_dir: Path, demo_root: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folders = demo_adapters(demo_root)
    prompt = Tokenizer(base_dir).encode("My parcel was due on Monday; where is it?", add_special_tokens=False)
    model = load_model(base_dir, "reference", 1)
    placed = [place(folder, model.spec, model.kernels, base_dir) for folder in folders]
    found = run(model, [(prompt, one) for one in (None, *placed)])
    for logits, folder in zip(found, [None, *folders], strict=True):
        oracle = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32).eval()
        if folder is not None:
            oracle = PeftModel.from_pretrained(oracle, folder).eval()
        with torch.inference_mode():
            expected = oracle(input_ids=torch.tensor([prompt])).logits[0]
        assert (logits - expected).abs().max().item() <= 1e-4


@pytest.mark.long
def test_support_triage_answers_held_out_tickets_in_one_mixed_batch(base_dir: Path, demo_root: Path) -> None:
    lines = (demo_root / "support-triage" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    tickets = [json.loads(line) for line in lines]
    labels = sorted({ticket["expected"] for ticket in tickets})
    chosen = [
        ticket
        for label in labels
        for ticket in [each for each in tickets if each["expected"] == label][: TICKETS // len(labels)]
    ]
    config = load_config(
        flags={"model.base": str(base_dir), "adapters.roots": (str(demo_root),), "engine.max_model_len": 1024},
        environ={},
    )
    engine, _ = build_engine(config, lambda line: None)
    tokenizer = Tokenizer(base_dir)
    for index, ticket in enumerate(chosen):
        text = tokenizer.apply_chat_template([{"role": "user", "content": ticket["input"]}])
        for adapter in ("support-triage", None):
            engine.submit(
                Request(
                    id=RequestId(f"{adapter}-{index}"),
                    flow=Flow("test"),
                    salt="",
                    tokens=tuple(tokenizer.encode(text, add_special_tokens=False)),
                    adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
                    sampling=SamplingParams(temperature=0.0),
                    stop=StopParams(max_new_tokens=6),
                )
            )
    answers: dict[str, list[int]] = {}
    while engine.has_work:
        for token in engine.step().tokens:
            answers.setdefault(token.request_id, []).append(token.token_id)
    engine.check()
    engine.close()
    right = {
        adapter: sum(
            tokenizer.decode(answers[f"{adapter}-{index}"]).strip() == ticket["expected"]
            for index, ticket in enumerate(chosen)
        )
        for adapter in ("support-triage", None)
    }
    assert right["support-triage"] >= 0.8 * len(chosen)
    assert right[None] <= 0.3 * len(chosen)
