"""An engine on a device with memory of its own, played by host memory: bank, host tier, mixed batches, preemption."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import LoraConfig

from manylora.adapter_ref import AdapterRef, SourceName, mixed_ref
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.store.store import Store
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import AdapterNotFound
from manylora.ids import Digest, Flow, RequestId, mint_request_id
from manylora.kernels.cuda.backend import TorchKernels
from manylora.system.resources import Resources
from manylora.wiring.engine import build_engine_on
from tests.conftest import long
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, make_adapter, make_base

SHAPES = {
    "one": LoraConfig(r=1, lora_alpha=4, target_modules=["v_proj"]),
    "three": LoraConfig(r=3, lora_alpha=6, target_modules=ALL, lora_bias=True),
    "large": LoraConfig(r=24, lora_alpha=16, target_modules=ALL),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=[*ALL, "lm_head"]),
}
MIX = mixed_ref([AdapterRef(SourceName.LOCAL, name) for name in ("one", "large")], [0.5, -1.25])
NAMES: tuple[AdapterRef | None, ...] = (None, MIX, *(AdapterRef(SourceName.LOCAL, name) for name in SHAPES))
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB, num_hidden_layers=2)
    save_byte_level(folder / "base")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        make_adapter(base, folder / "adapters" / name, shape, seed=seed)
    return folder


def open_engine(folder: Path, kernels: TorchKernels, name: str, **flags: int) -> Engine:
    config = load_config(
        flags={
            "model.base": str(folder / "base"),
            "model.device": "auto",
            "model.cache_dir": str(folder / f"cache-{name}"),
            "adapters.roots": (str(folder / "adapters"),),
            "adapters.host_bytes": 400_000,
            "engine.max_model_len": 64,
            "engine.block_size": 4,
            **{key.replace("__", "."): value for key, value in flags.items()},
        },
        environ={},
    )
    resources = Resources(threads=1, memory_bytes=2048 * MIB)
    return build_engine_on(kernels, config, lambda line: None, resources)[0]


def card() -> TorchKernels:
    """Kernels of a device with 2 GiB of its own."""
    return TorchKernels(torch.device("cpu"), torch.float32, own_memory_bytes=2048 * MIB)


@pytest.fixture(scope="module")
def crowded(folder: Path) -> Iterator[Engine]:
    """Few blocks, small steps, and a bank with room for `large` and one more at once."""
    block_bytes = card().form.kv_block_bytes(layers=2, block_size=4, kv_heads=2, head_dim=8)
    engine = open_engine(
        folder,
        card(),
        "crowded",
        engine__max_step_tokens=16,
        engine__max_running=6,
        engine__kv_bytes=20 * block_bytes,
        adapters__bank_bytes=150_000,
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def roomy(folder: Path) -> Iterator[Engine]:
    engine = open_engine(folder, card(), "roomy")
    yield engine
    engine.close()


def request(number: int, adapter: AdapterRef | None, length: int = 14, *, new_tokens: int = 8) -> Request:
    greedy, drawn = SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_p=0.9, seed=number)
    return Request(
        id=mint_request_id(),
        flow=Flow("a"),
        salt="",
        tokens=tuple(3 + (7 * number + 5 * index) % 150 for index in range(length)),
        adapter=adapter,
        sampling=greedy if number % 2 else drawn,
        stop=StopParams(max_new_tokens=new_tokens, ignore_eos=True),
    )


def run(
    engine: Engine, requests: list[Request], each_step: Callable[[], None] = lambda: None
) -> dict[RequestId, list[int]]:
    tokens: dict[RequestId, list[int]] = {request.id: [] for request in requests}
    for each in requests:
        engine.submit(each)
    while engine.has_work:
        each_step()
        events = engine.step()
        for token in events.tokens:
            tokens[token.request_id].append(token.token_id)
        assert [end.failure for end in events.finished if end.reason is not FinishReason.LENGTH] == []
    engine.check()
    return tokens


def test_a_mixed_batch_equals_each_request_alone(crowded: Engine, roomy: Engine) -> None:
    requests = [*(request(row, None) for row in range(6))]  # more than the blocks hold at once
    requests += [request(10 + number, name, 5 + 4 * number) for number, name in enumerate(NAMES)]
    mixed = run(crowded, requests)
    for each in requests:
        assert mixed[each.id] == run(roomy, [each])[each.id]
    assert crowded.stats().preemptions > 0
    assert roomy.stats().preemptions == 0
    assert len({tuple(run(roomy, [request(1, name, new_tokens=5)]).popitem()[1]) for name in NAMES}) == len(NAMES)


def test_an_evicted_adapter_comes_back_from_the_host_tier_with_the_same_tokens(crowded: Engine) -> None:
    names = [AdapterRef(SourceName.LOCAL, name) for name in ("three", "large", "dora")]
    first = [run(crowded, [request(3, name)]).popitem()[1] for name in names]
    states = {info.state for info in crowded.infos()}
    assert {AdapterState.IN_HOST, AdapterState.ON_DEVICE} <= states
    assert [run(crowded, [request(3, name)]).popitem()[1] for name in names] == first


def test_adapters_beyond_the_bank_evict_each_other_and_never_the_base(crowded: Engine, roomy: Engine) -> None:
    names = [AdapterRef(SourceName.LOCAL, name) for name in SHAPES]
    requests = [request(11, name) for name in (*names, *names, None)]
    evictions = crowded.stats().adapters.evictions
    found = run(crowded, requests)
    assert crowded.stats().adapters.evictions > evictions
    for each in requests:
        assert found[each.id] == run(roomy, [each])[each.id]


def test_a_deleted_adapter_leaves_zeros_in_the_memory_of_the_card(crowded: Engine) -> None:
    name = AdapterRef(SourceName.LOCAL, "large")
    run(crowded, [request(3, name)])
    image = cast(Store, crowded._store).weights[Digest(crowded.info(name).digest)].image
    assert image.any()
    crowded.manage(AdapterAction.DELETE, name)
    while crowded.tend():
        pass
    assert not image.any()
    with pytest.raises(AdapterNotFound):
        crowded.info(name)


def test_a_card_without_bfloat16_keeps_adapters_in_float16(folder: Path) -> None:
    engine = open_engine(folder, TorchKernels(torch.device("cpu"), torch.float16, 2048 * MIB), "float16")
    try:
        names = [AdapterRef(SourceName.LOCAL, name) for name in ("one", "dora")]
        tokens = run(engine, [request(10 + number, name) for number, name in enumerate((None, *names))])
        assert {len(each) for each in tokens.values()} == {8}
        placed = [cast(Store, engine._store).weights[Digest(engine.info(name).digest)] for name in names]
        assert [(each.image.dtype, bool(each.image.any())) for each in placed] == 2 * [(torch.float16, True)]
    finally:
        engine.close()


@pytest.mark.parametrize("quantize", long("int8", "int4"))
def test_a_mixed_batch_on_a_quantised_base_equals_each_request_alone(folder: Path, quantize: str) -> None:
    kernels = TorchKernels(torch.device("cpu"), torch.float32, 2048 * MIB, quantize)
    engine = open_engine(folder, kernels, quantize, engine__max_running=8)
    try:
        requests = [request(10 + number, name, 5 + 4 * number) for number, name in enumerate(NAMES)]
        mixed = run(engine, requests)
        for each in requests:
            assert mixed[each.id] == run(engine, [each])[each.id]
    finally:
        engine.close()
