"""How well a base computes: likelihood of a text, and an example adapter's accuracy on tickets it has not seen."""

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.bench.machine import ROOT
from manylora.engine.engine import Engine
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.kernels.operands import AttentionBatch, StepInput
from manylora.models.llama import LlamaModel
from manylora.models.text.tokenizer import Tokenizer

TEXTS = ("README.md", "docs/architecture.md", "docs/errors.md", "docs/settings.md", "docs/decisions/*.md")
WINDOW = 512  # positions a token may look back at most; every window begins anew
CHUNK = 256
BLOCK = 16
TRIAGE = ROOT / "examples" / "adapters" / "support-triage"
MAX_ANSWER = 8  # tokens, as in the adapter's own score.py


def windows(tokenizer: Tokenizer) -> list[list[int]]:
    """The project's own pages, in tokens, cut into whole windows."""
    files = [file for pattern in TEXTS for file in sorted(ROOT.glob(pattern))]
    tokens = tokenizer.encode("\n\n".join(file.read_text(encoding="utf-8") for file in files))
    return [tokens[start : start + WINDOW] for start in range(0, len(tokens) - WINDOW + 1, WINDOW)]


def compare(exact: LlamaModel, rounded: LlamaModel, texts: list[list[int]]) -> dict[str, float]:
    """Perplexity of both on the same tokens, and how far the second's predictions are from the first's.

    The second's key is `perplexity_` and the name of its kernels.
    Returns: perplexities; the mean Kullback-Leibler divergence in nats; the share of positions with the same likeliest
    token; all over every position that has a next token.
    """
    count, nats, divergence, same = 0, [0.0, 0.0], 0.0, 0
    for tokens in texts:
        following = torch.tensor(tokens[1:])
        p, q = (log_probabilities(model, tokens)[:-1] for model in (exact, rounded))
        for index, side in enumerate((p, q)):
            nats[index] -= side.gather(1, following[:, None]).double().sum().item()
        divergence += (p.exp() * (p - q)).sum().item()
        same += int((p.argmax(1) == q.argmax(1)).sum())
        count += len(following)
    first, second = (torch.tensor(total / count).exp().item() for total in nats)
    return {
        "tokens": count,
        "perplexity_bf16": round(first, 4),
        f"perplexity_{rounded.kernels.name}": round(second, 4),
        "perplexity_ratio": round(second / first, 4),
        "kl_divergence_nats": round(divergence / count, 6),
        "same_likeliest_token": round(same / count, 4),
    }


@torch.inference_mode()
def log_probabilities(model: LlamaModel, tokens: list[int]) -> Tensor:
    """(len(tokens), vocab) float32, computed in chunks as a prompt is."""
    spec, kernels = model.spec, model.kernels
    blocks = -(-len(tokens) // BLOCK)
    kv = kernels.new_kv(
        layers=spec.num_layers, num_blocks=blocks, block_size=BLOCK, kv_heads=spec.kv_heads, head_dim=spec.head_dim
    )
    table = torch.arange(blocks, dtype=torch.int32)[None]
    parts = []
    for start in range(0, len(tokens), CHUNK):
        positions = torch.arange(start, min(start + CHUNK, len(tokens)))
        attention = AttentionBatch(
            positions=positions.int(),
            slots=positions,
            row_sequence=torch.zeros(len(positions), dtype=torch.int32),
            block_tables=table,
        )
        step = StepInput(
            token_ids=torch.tensor(tokens[start : start + CHUNK]),
            logit_rows=torch.arange(len(positions)),
            attention=attention,
            lora=kernels.prepare_lora(()),
        )
        parts.append(model.forward(step, kv).log_softmax(dim=-1))
    return torch.cat(parts)


def triage_answers(engine: Engine, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(expected, answered) of every held-out ticket, greedily, all through the engine at once."""
    expected: dict[RequestId, str] = {}
    answers: dict[RequestId, list[int]] = {}
    for ticket in _tickets():
        text = tokenizer.apply_chat_template([{"role": "user", "content": ticket["input"]}])
        request = Request(
            id=mint_request_id(),
            flow=Flow("benchmark"),
            salt="",
            tokens=tuple(tokenizer.encode(text, add_special_tokens=False)),
            adapter=AdapterRef(SourceName.LOCAL, TRIAGE.name),
            sampling=SamplingParams(temperature=0.0),
            stop=StopParams(max_new_tokens=MAX_ANSWER),
        )
        expected[request.id], answers[request.id] = ticket["expected"], []
        engine.submit(request)
    while engine.has_work:
        for token in engine.step().tokens:
            answers[token.request_id].append(token.token_id)
    return [(label, tokenizer.decode(answers[key]).strip()) for key, label in expected.items()]


def accuracy(answers: list[tuple[str, str]]) -> float:
    return round(sum(label == answer for label, answer in answers) / len(answers), 4)


def _tickets() -> Iterator[dict[str, str]]:
    for file in ("heldout.jsonl", "heldout-2.jsonl"):
        yield from map(json.loads, (TRIAGE / file).read_text(encoding="utf-8").splitlines())
