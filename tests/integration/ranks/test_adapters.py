"""The life of an adapter on two ranks in processes: erased, placed again, and replaced under its name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from manylora import LLM, SamplingParams
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction
from manylora.adapters.sources.source import WEIGHTS_FILE
from manylora.config.declaration import Setting
from manylora.wiring.llm import TextOutput
from tests.support.text_adapters import make_text_base
from tests.support.tiny import TinyBase, make_adapter
from tests.support.waiting import wait_for
from tests.system.process_memory import holds
from tests.wiring.test_ranks import rank_pids

pytestmark = pytest.mark.long

RANK, SMALL_RANK = 16, 4
BANK_BYTES = 16_000
"""Room for one of the adapters, and not for the small one beside it."""
POSITIONS = 48
SETTINGS: dict[str, Setting] = {
    "model.kernels": "native",  # torch's products leave parts of their operands in scratch memory
    "model.rank_timeout_s": 25.0,
    "engine.prefix_cache": False,
    "engine.max_model_len": POSITIONS,
    "adapters.bank_bytes": BANK_BYTES,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    base = make_text_base(tmp_path_factory.mktemp("lives") / "Tiny")
    save(base, "other", 9, SMALL_RANK)
    return base


@pytest.fixture(scope="module")
def two(base: TinyBase) -> Iterator[LLM]:
    with opened(base, **{"engine.kv_bytes": kv_bytes(base, POSITIONS)}) as llm:  # the cache has nothing to lend
        yield llm


def opened(base: TinyBase, **settings: Setting) -> LLM:
    own = {**SETTINGS, "model.tensor_parallel": 2, **settings}
    return LLM(base.directory, adapters=base.directory.parent / "adapters", settings=own)


def save(base: TinyBase, name: str, seed: int, rank: int = RANK) -> Path:
    config = LoraConfig(r=rank, lora_alpha=8 * rank, target_modules=["q_proj", "v_proj"])
    return make_adapter(base, base.directory.parent / "adapters" / name, config, seed=seed)


def weights_in(folder: Path) -> bytes:
    """Return bytes of an adapter's weights that each rank has: a row of A of a projection with divided outputs.

    It lies behind the place that the small adapter may take in the memory that this one leaves.
    """
    tensors = load_file(folder / WEIGHTS_FILE)
    *_, a = (tensor for name, tensor in sorted(tensors.items()) if "q_proj.lora_A" in name)
    return a[-1].bfloat16().view(torch.uint8).numpy().tobytes()


def kv_bytes(base: TinyBase, positions: int) -> int:
    """Return the bytes of keys and values in bfloat16, of all ranks."""
    config = base.config
    return int(positions * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2 * 2)


def reply(llm: LLM, name: str) -> TextOutput:
    return llm.generate("hello", name, max_tokens=4, sampling=SamplingParams(temperature=0.0, num_logprobs=5))


def delete(llm: LLM, name: str) -> None:
    ref = AdapterRef(SourceName.LOCAL, name)
    assert llm._wait(llm._client.manage(AdapterAction.DELETE, ref)).is_deleted


def num_evictions(llm: LLM) -> int:
    stats = llm._wait(llm._client.stats())
    assert stats is not None
    return stats.adapters.evictions


@pytest.mark.parametrize("is_evicted", [True, False])
def test_no_byte_of_a_deleted_adapter_is_left_on_another_rank(base: TinyBase, two: LLM, is_evicted: bool) -> None:
    needle = weights_in(save(base, "gone", 1 + is_evicted))
    [pid] = rank_pids()
    assert not holds(pid, needle)
    reply(two, "gone")
    assert holds(pid, needle)
    if is_evicted:
        evictions = num_evictions(two)
        reply(two, "other")
        assert num_evictions(two) == evictions + 1
    delete(two, "gone")
    wait_for(lambda: not holds(pid, needle))


def test_an_adapter_that_is_placed_again_gives_equal_scores(base: TinyBase, two: LLM) -> None:
    save(base, "back", 3)
    first, evictions = reply(two, "back"), num_evictions(two)
    assert reply(two, "other").tokens != first.tokens
    assert num_evictions(two) == evictions + 1
    assert reply(two, "back").tokens == first.tokens


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_name_with_new_weights_never_gets_the_old_ones(base: TinyBase, two: LLM, is_deleted: bool) -> None:
    save(base, "anew", 5)
    save(base, "new", 6)
    old, new = reply(two, "anew"), reply(two, "new")
    if is_deleted:
        delete(two, "anew")
    save(base, "anew", 6)
    assert reply(two, "anew").tokens == new.tokens != old.tokens


def test_adapters_in_memory_that_all_ranks_lend_from_their_keys_give_equal_scores(base: TinyBase) -> None:
    names = ["first", "second", "third"]
    for seed, name in enumerate(names, 11):
        save(base, name, seed)
    with opened(base) as llm:
        expected = [reply(llm, name).tokens for name in names]
        sampling = SamplingParams(temperature=0.0, num_logprobs=5)
        found = llm.generate(["hello"] * len(names), names, max_tokens=4, sampling=sampling)
        stats = llm._wait(llm._client.stats())
    assert [each.tokens for each in found] == expected
    assert stats is not None
    assert stats.kv_blocks_lent > 0
