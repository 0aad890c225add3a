"""A base with a sliding window, real arithmetic: the blocks behind the window are given back and never read again."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.kernels.select import select_kernels
from manylora.wiring.engine import build_engine
from tests.models.test_llama import SMALL, save_random
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache

WINDOW, BLOCK, ROWS, BUDGET = 9, 4, 16, 40
PROMPTS = {f"r{length}": [(length + 5 * at * at) % 97 + 3 for at in range(length)] for length in (1, 8, 33, 70, 86)}


@dataclass(frozen=True)
class Saved:
    """A saved base, and the greedy replies of transformers to the prompts."""

    folder: Path
    replies: dict[str, list[int]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("sliding")
    config = {**SMALL, "vocab_size": 340, "sliding_window": WINDOW, "head_dim": 8, "max_position_embeddings": 128}
    oracle: Any = save_random(folder / "base", MistralForCausalLM(MistralConfig(**config)))
    save_byte_level(folder / "base")
    replies = {}
    for name, prompt in PROMPTS.items():
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(BUDGET):
                tokens.append(int(oracle(torch.tensor([tokens])).logits[0, -1].argmax()))
        replies[name] = tokens[len(prompt) :]
    return Saved(folder, replies)


@pytest.fixture(params=[("reference", False), ("native", False), ("native", True)], ids=str)
def engine(saved: Saved, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Twenty blocks: two thirds of those that the longest sequence would take, if it gave none back."""
    name, prefix_cache = request.param
    block_bytes = select_kernels(name, 1).form.kv_block_bytes(layers=2, block_size=BLOCK, kv_heads=2, head_dim=8)
    config = load_config(
        flags={
            "model.base": str(saved.folder / "base"),
            "model.kernels": name,
            "model.threads": 1,
            "model.cache_dir": str(make_cache(tmp_path / "cache")),
            "engine.block_size": BLOCK,
            "engine.max_step_tokens": ROWS,
            "engine.max_running": 8,
            "engine.kv_bytes": 20 * block_bytes,
            "engine.prefix_cache": prefix_cache,
        },
        environ={},
    )
    built = build_engine(config, lambda line: None)[0]
    yield built
    built.close()


def replies_of(engine: Engine, *, is_poisoned: bool) -> dict[str, list[int]]:
    """Run all prompts at once; if `is_poisoned`, every block that is neither held nor cached has NaN before a step."""
    for name, prompt in PROMPTS.items():
        engine.submit(
            Request(
                id=RequestId(name),
                flow=Flow("a"),
                salt="",
                tokens=tuple(prompt),
                adapter=None,
                sampling=SamplingParams(temperature=0.0),
                stop=StopParams(max_new_tokens=BUDGET, ignore_eos=True),
            )
        )
    said: dict[str, list[int]] = {name: [] for name in PROMPTS}
    while engine.has_work:
        if is_poisoned:
            poison(engine)
        for event in engine.step().tokens:
            said[event.request_id].append(event.token_id)
    engine.check()
    return said


def poison(engine: Engine) -> None:
    """Fill the memory of all blocks that the pool would give away without a loss."""
    pool, kv = engine._scheduler.pool, engine._executor.kv
    unused = [block for block in pool._free if pool._keys[block] is None]
    for part in (kv.keys, kv.values):  # type: ignore[attr-defined]  # the tensors of either back end's cache
        part.view(2, kv.num_blocks, -1)[:, unused] = math.nan


def test_replies_are_those_of_transformers_and_freed_blocks_are_never_read(engine: Engine, saved: Saved) -> None:
    clean = replies_of(engine, is_poisoned=False)
    assert replies_of(engine, is_poisoned=True) == clean
    if engine._executor.kv.keys.dtype == torch.float32:  # type: ignore[attr-defined]  # as above
        assert clean == saved.replies
