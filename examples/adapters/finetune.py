"""LoRA fine-tuning on a CPU for the demo adapters in the sibling folders.

Three things make this fast enough for a laptop:

* **Packing.** Examples share their leading tokens (the system prompt). One row holds that prefix once and then many
  examples after it; an attention mask keeps the examples apart, and each one sees the prefix and itself only, at the
  positions it would have on its own. No padding, no repeated prefix.
* **Cached lower layers.** Only the layers from ``first_layer`` upwards get an adapter. What enters them does not change
  during training, so it is computed once per example and kept in memory across epochs.
* **Logits where they are needed.** The vocabulary projection runs at the answer positions only.

The loss covers the answer and the end-of-turn token. The result is an ordinary PEFT adapter folder
(``adapter_config.json`` and ``adapter_model.safetensors``).

    from finetune import Example, FineTuneConfig, finetune

    examples = [Example.chat("My parcel never came", "delivery"), ...]
    finetune(base_dir, examples, out_dir, FineTuneConfig(rank=8, epochs=2), validation=held_back)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

DEFAULT_BASE_DIR = Path("~/.cache/manylora/bases/SmolLM2-135M-Instruct")
BASE_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One training pair: the chat so far, and what the assistant must answer."""

    messages: tuple[Message, ...]
    answer: str

    @classmethod
    def chat(cls, user: str, answer: str, system: str | None = None) -> Example:
        """A single-turn example; without `system` the chat template's default system message applies."""
        messages = [{"role": "user", "content": user}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return cls(tuple(messages), answer)


@dataclass(frozen=True)
class FineTuneConfig:
    """All settings of a run. The defaults suit a small classification task."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ATTENTION_MODULES + MLP_MODULES
    first_layer: int = 14
    """Lowest layer that gets an adapter; the layers below are run once per example."""
    last_layer: int | None = None
    """Highest layer that gets an adapter (None: the top one)."""
    lr: float = 5e-4
    min_lr_ratio: float = 0.05
    weight_decay: float = 0.0
    warmup: float = 0.06
    epochs: float = 2.0
    row_tokens: int = 384
    """Tokens in one packed row (a longer example gets a row of its own)."""
    batch_tokens: int = 1536
    """Tokens per optimizer step, reached by accumulating rows."""
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    save_dtype: str = "bfloat16"
    base_model_id: str = BASE_MODEL_ID
    eos: str = "<|im_end|>"
    log_every: int = 10
    eval_every_epoch: bool = True
    save_every_epoch: bool = True


@dataclass
class FineTuneReport:
    """What a run did, for printing and for the folder's README."""

    examples: int
    tokens: int
    steps: int
    seconds: float
    final_loss: float
    validation_accuracy: float | None = None
    history: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """Greedy answer for one example, read off under teacher forcing.

    `correct` is exact: when every arg-max token equals the expected one, greedy decoding gives the expected answer.
    `text` is what the arg-max tokens spell; after a first wrong token it is an approximation.
    """

    correct: bool
    text: str
    loss: float


@dataclass(frozen=True)
class _Encoded:
    """Token ids of an example after the shared prefix; the last `len(labels)` inputs predict `labels`."""

    inputs: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class _Row:
    """A packed row: the shared prefix, then whole examples one after the other."""

    members: tuple[int, ...]
    positions: torch.Tensor
    mask: torch.Tensor
    answer_at: torch.Tensor
    labels: torch.Tensor


class PackedLora:
    """A base model with a LoRA on its upper layers, run on packed rows with the lower layers' output cached."""

    def __init__(self, base_dir: Path, config: FineTuneConfig, adapter_dir: Path | None = None) -> None:
        """Load the base in float32 and put a fresh adapter (or the one in `adapter_dir`) on it."""
        self.config = config
        base_dir = Path(base_dir).expanduser()
        torch.manual_seed(config.seed)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base_dir)
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, attn_implementation="sdpa")
        base.requires_grad_(False)
        layer_count = base.config.num_hidden_layers
        last = layer_count - 1 if config.last_layer is None else config.last_layer
        if adapter_dir is None:
            lora = LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=list(config.target_modules),
                layers_to_transform=list(range(config.first_layer, last + 1)),
                bias="none",
                task_type="CAUSAL_LM",
            )
            self.model: PeftModel = get_peft_model(base, lora)
        else:
            self.model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=True)
        self._causal = self.model.get_base_model()
        self._decoder = self._causal.model
        self._eos_id = self.tokenizer.convert_tokens_to_ids(config.eos)
        self._prefix: torch.Tensor | None = None
        self._prefix_lower: torch.Tensor | None = None

    # ---- turning examples into rows -------------------------------------------------------------------------------

    def _prompt_ids(self, example: Example) -> list[int]:
        text = self.tokenizer.apply_chat_template(list(example.messages), add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode(self, examples: Sequence[Example]) -> list[_Encoded]:
        """Tokenize; the first call fixes the shared prefix (the tokens all its prompts start with)."""
        prompts = [self._prompt_ids(example) for example in examples]
        if self._prefix is None:
            self._prefix = torch.tensor(_common_prefix(prompts), dtype=torch.long)
        prefix = self._prefix.tolist()
        encoded = []
        for prompt, example in zip(prompts, examples, strict=True):
            if prompt[: len(prefix)] != prefix or len(prompt) <= len(prefix):
                raise ValueError(f"prompt does not start with the shared prefix: {example.messages!r}")
            answer = [*self.tokenizer(example.answer, add_special_tokens=False)["input_ids"], self._eos_id]
            inputs = prompt[len(prefix) :] + answer[:-1]
            encoded.append(_Encoded(torch.tensor(inputs), torch.tensor(answer)))
        return encoded

    def pack(self, encoded: Sequence[_Encoded], order: Iterable[int]) -> list[tuple[int, ...]]:
        """Fill rows of about `row_tokens` tokens with examples in the given order (first row that has room)."""
        room_at_start = self.config.row_tokens - len(self._prefix)
        rows: list[list[int]] = []
        room: list[int] = []
        still_open = 0
        for index in order:
            need = len(encoded[index].inputs)
            for slot in range(still_open, len(rows)):
                if room[slot] >= need:
                    break
            else:
                rows.append([])
                room.append(room_at_start)
                slot = len(rows) - 1
                still_open = max(0, len(rows) - 4)
            rows[slot].append(index)
            room[slot] -= need
        return [tuple(row) for row in rows]

    def _row(self, encoded: Sequence[_Encoded], members: Sequence[int]) -> _Row:
        prefix_len = len(self._prefix)
        segments = [torch.zeros(prefix_len, dtype=torch.long)]
        positions = [torch.arange(prefix_len)]
        answer_at = []
        offset = prefix_len
        for number, index in enumerate(members, start=1):
            length, answers = len(encoded[index].inputs), len(encoded[index].labels)
            segments.append(torch.full((length,), number))
            positions.append(torch.arange(prefix_len, prefix_len + length))
            offset += length
            answer_at.append(torch.arange(offset - answers, offset))
        segment = torch.cat(segments)
        visible = (segment[None, :] == segment[:, None]) | (segment[None, :] == 0)
        visible &= torch.ones_like(visible).tril()
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        return _Row(
            tuple(members),
            torch.cat(positions)[None],
            mask[None, None],
            torch.cat(answer_at),
            torch.cat([encoded[index].labels for index in members]),
        )

    # ---- running layers -------------------------------------------------------------------------------------------

    def _run_layers(self, hidden: torch.Tensor, row: _Row, start: int, stop: int) -> torch.Tensor:
        rotary = self._decoder.rotary_emb(hidden, position_ids=row.positions)
        for layer in self._decoder.layers[start:stop]:
            hidden = layer(
                hidden, attention_mask=row.mask, position_ids=row.positions, position_embeddings=rotary, use_cache=False
            )
        return hidden

    @torch.no_grad()
    def cache_lower(self, encoded: Sequence[_Encoded], label: str = "") -> list[torch.Tensor]:
        """Output of the frozen lower layers for every example (the shared prefix is kept aside)."""
        prefix_len = len(self._prefix)
        lower: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
        progress = _Progress(sum(len(item.inputs) for item in encoded), f"lower layers {label}".rstrip())
        for members in self.pack(encoded, sorted(range(len(encoded)), key=lambda i: len(encoded[i].inputs))):
            row = self._row(encoded, members)
            ids = torch.cat([self._prefix, *(encoded[i].inputs for i in members)])
            hidden = self._run_layers(self._decoder.embed_tokens(ids)[None], row, 0, self.config.first_layer)[0]
            if self._prefix_lower is None:
                self._prefix_lower = hidden[:prefix_len].clone()
            parts = hidden[prefix_len:].split([len(encoded[i].inputs) for i in members])
            for index, part in zip(members, parts, strict=True):
                lower[index] = part.clone()
            progress.add(len(hidden) - prefix_len)
        return lower

    def answer_logits(self, row: _Row, lower: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits at the row's answer positions, from the cached lower layers through the adapted upper ones."""
        hidden = torch.cat([self._prefix_lower, *(lower[i] for i in row.members)])[None]
        hidden = self._run_layers(hidden, row, self.config.first_layer, len(self._decoder.layers))
        return self._causal.lm_head(self._decoder.norm(hidden[0, row.answer_at]))

    @torch.no_grad()
    def largest_difference(self, encoded: Sequence[_Encoded], lower: Sequence[torch.Tensor]) -> float:
        """Largest gap between packed-and-cached logits and those of a plain PEFT forward, over a few examples."""
        was_training = self.model.training
        self.model.eval()
        members = self.pack(encoded, range(min(len(encoded), 8)))[0]
        packed = self.answer_logits(self._row(encoded, members), lower)
        plain = []
        for index in members:
            ids = torch.cat([self._prefix, encoded[index].inputs])[None]
            plain.append(self.model(input_ids=ids).logits[0, -len(encoded[index].labels) :])
        self.model.train(was_training)
        return (torch.cat(plain) - packed).abs().max().item()

    @torch.no_grad()
    def predict(self, encoded: Sequence[_Encoded], lower: Sequence[torch.Tensor]) -> list[Prediction]:
        """Greedy answers under teacher forcing."""
        was_training = self.model.training
        self.model.eval()
        found: list[Prediction | None] = [None] * len(encoded)
        for members in self.pack(encoded, sorted(range(len(encoded)), key=lambda i: len(encoded[i].inputs))):
            row = self._row(encoded, members)
            logits = self.answer_logits(row, lower)
            best = logits.argmax(-1)
            losses = F.cross_entropy(logits, row.labels, reduction="none")
            sizes = [len(encoded[i].labels) for i in members]
            for index, guess, loss in zip(members, best.split(sizes), losses.split(sizes), strict=True):
                correct = torch.equal(guess, encoded[index].labels)
                text = self.tokenizer.decode(guess, skip_special_tokens=True)
                found[index] = Prediction(correct, text, loss.sum().item())
        self.model.train(was_training)
        return found  # type: ignore[return-value]

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self, out_dir: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, and touch nothing else in the folder."""
        dtype = getattr(torch, self.config.save_dtype)
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        weights = {name: value.to(dtype) for name, value in state.items()}
        settings = self.model.peft_config["default"]
        settings.base_model_name_or_path = self.config.base_model_id
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            self.model.save_pretrained(temporary, state_dict=weights, save_embedding_layers=False)
            shutil.copyfile(Path(temporary, "adapter_model.safetensors"), out_dir / "adapter_model.safetensors")
            saved: dict[str, Any] = json.loads(Path(temporary, "adapter_config.json").read_text())
        saved["target_modules"] = sorted(saved["target_modules"])  # PEFT keeps a set: its order varies between runs
        (out_dir / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def finetune(
    base_dir: Path,
    train_examples: Sequence[Example],
    out_dir: Path,
    config: FineTuneConfig | None = None,
    validation: Sequence[Example] = (),
    threads: int | None = None,
    start_from: Path | None = None,
) -> FineTuneReport:
    """Train an adapter and save it to `out_dir`; `validation` is scored after each epoch when given.

    `start_from` continues with a saved adapter, which must have been trained with the same `first_layer`.
    """
    config = config or FineTuneConfig()
    if threads:
        torch.set_num_threads(threads)
    if not train_examples:
        raise ValueError("no training examples")
    lora = PackedLora(base_dir, config, start_from)
    encoded = lora.encode([*train_examples, *validation])
    train, held = encoded[: len(train_examples)], encoded[len(train_examples) :]
    tokens = sum(len(item.inputs) for item in train)
    weights = [p for p in lora.model.parameters() if p.requires_grad]
    print(
        f"{len(train)} examples, {tokens} tokens after a shared prefix of {len(lora._prefix)}; "
        f"{sum(p.numel() for p in weights) / 1e6:.2f} M adapter weights; {torch.get_num_threads()} threads",
        flush=True,
    )
    began = time.monotonic()
    lower = lora.cache_lower(train, "(training set)")
    held_lower = lora.cache_lower(held, "(validation set)") if held else []
    _assert_same_logits(lora, train, lower)

    total_steps, steps = _plan(lora, train, config)
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    report = FineTuneReport(len(train), tokens, total_steps, 0.0, math.nan)
    progress = _Progress(total_steps, "step", every_seconds=0)
    running: list[float] = []
    lora.model.train()
    num_epochs = 0
    for step, (batch, ends_epoch) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, total_steps, config)
        running.append(_train_step(lora, train, lower, batch, optimizer, weights, config))
        if (step + 1) % config.log_every == 0 or step + 1 == total_steps:
            report.final_loss = sum(running) / len(running)
            report.history.append(round(report.final_loss, 4))
            running.clear()
            progress.add(step + 1 - progress.done, f"loss {report.final_loss:.4f}")
        if ends_epoch or step + 1 == total_steps:
            num_epochs += 1
            if config.save_every_epoch:  # a hidden folder: a server does not take it for an adapter
                lora.save(Path(out_dir) / ".epochs" / str(num_epochs))
            if held and config.eval_every_epoch:
                guesses = lora.predict(held, held_lower)
                report.validation_accuracy = sum(g.correct for g in guesses) / len(guesses)
                print(f"validation: {report.validation_accuracy:.4f} of {len(guesses)} answers exact", flush=True)
    _assert_same_logits(lora, train, lower)
    lora.save(Path(out_dir))
    report.seconds = time.monotonic() - began
    print(f"done in {report.seconds / 60:.1f} min; adapter in {out_dir}", flush=True)
    return report


def evaluate(
    base_dir: Path, adapter_dir: Path, examples: Sequence[Example], config: FineTuneConfig | None = None
) -> list[Prediction]:
    """Greedy answers of a saved adapter (all layers are run, so any adapter will do)."""
    settings = config or FineTuneConfig()
    settings = FineTuneConfig(**{**asdict(settings), "first_layer": 0})
    lora = PackedLora(base_dir, settings, adapter_dir=Path(adapter_dir))
    encoded = lora.encode(examples)
    return lora.predict(encoded, lora.cache_lower(encoded))


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags every training script in the sibling folders has."""
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE_DIR, help="folder of the base model")
    parser.add_argument("--out", type=Path, default=None, help="where the adapter goes (default: the script's folder)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--limit", type=int, default=None, help="use only so many training examples (quick trial)")


def write_report(report: FineTuneReport, path: Path) -> None:
    """Save a run's figures as JSON."""
    path.write_text(json.dumps(asdict(report), indent=2) + "\n")


def _plan(
    lora: PackedLora, train: Sequence[_Encoded], config: FineTuneConfig
) -> tuple[int, list[tuple[list[tuple[int, ...]], bool]]]:
    """All batches of the run (each a list of rows), with a flag on the last one of an epoch."""
    rng = random.Random(config.seed)
    rows_per_batch = max(1, round(config.batch_tokens / config.row_tokens))
    plan: list[tuple[list[tuple[int, ...]], bool]] = []
    for epoch in range(math.ceil(config.epochs)):
        order = list(range(len(train)))
        rng.shuffle(order)
        rows = lora.pack(train, order[: math.ceil(len(order) * min(1.0, config.epochs - epoch))])
        rng.shuffle(rows)
        batches = [rows[i : i + rows_per_batch] for i in range(0, len(rows), rows_per_batch)]
        plan.extend((batch, batch is batches[-1]) for batch in batches)
    return len(plan), plan


def _train_step(
    lora: PackedLora,
    train: Sequence[_Encoded],
    lower: Sequence[torch.Tensor],
    batch: Sequence[tuple[int, ...]],
    optimizer: torch.optim.Optimizer,
    weights: Sequence[torch.nn.Parameter],
    config: FineTuneConfig,
) -> float:
    """One optimizer step over a batch of rows; returns the mean loss per answer token."""
    answer_tokens = sum(len(train[i].labels) for members in batch for i in members)
    total = 0.0
    for members in batch:
        row = lora._row(train, members)
        logits = lora.answer_logits(row, lower)
        loss = F.cross_entropy(logits, row.labels, reduction="sum", label_smoothing=config.label_smoothing)
        (loss / answer_tokens).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / answer_tokens


def _schedule(step: int, total: int, config: FineTuneConfig) -> float:
    """Linear warm-up, then a cosine down to `min_lr_ratio`."""
    warm = max(1, round(total * config.warmup))
    if step < warm:
        return (step + 1) / warm
    fraction = (step - warm) / max(1, total - warm)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * fraction))


def _assert_same_logits(lora: PackedLora, encoded: Sequence[_Encoded], lower: Sequence[torch.Tensor]) -> None:
    gap = lora.largest_difference(encoded, lower)
    print(f"packed and cached logits against a plain PEFT forward: largest difference {gap:.1e}", flush=True)
    if not gap < 5e-3:
        raise AssertionError(f"packed forward differs from the plain one by {gap}")


def _common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Leading token ids that all prompts share, leaving each at least one token of its own."""
    first, last = min(prompts), max(prompts)
    length = 0
    while length < min(len(p) for p in (first, last)) - 1 and first[length] == last[length]:
        length += 1
    return list(first[: min(length, min(len(p) for p in prompts) - 1)])


class _Progress:
    """Prints how far a loop is, at a bounded rate, with the time it has left."""

    def __init__(self, total: int, name: str, every_seconds: float = 20.0) -> None:
        self.total, self.name, self.done = total, name, 0
        self._every, self._began = every_seconds, time.monotonic()
        self._last = self._began

    def add(self, amount: int, note: str = "") -> None:
        """Count `amount` as done and print a line when one is due."""
        self.done += amount
        now = time.monotonic()
        if now - self._last < self._every and self.done < self.total:
            return
        self._last = now
        left = (now - self._began) / max(1, self.done) * (self.total - self.done)
        print(f"{self.name} {self.done}/{self.total} {note} eta {left / 60:.1f} min".replace("  ", " "), flush=True)
