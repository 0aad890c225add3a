"""An adapter whose weights are finite and whose results are not: it ends its own requests, and soon gets no more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterState
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.wiring.engine import build_engine
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, make_adapter, make_base

HITS = 2
LARGE = 1e25
"""The largest value of an adapter's matrices; their product is beyond float32."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = make_base(tmp_path / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(tmp_path / "base")
    for seed, name in enumerate(("good", "other", "poisoned")):
        make_adapter(base, tmp_path / "adapters" / name, LoraConfig(r=4, lora_alpha=4, target_modules=ALL), seed=seed)
    poison(tmp_path / "adapters" / "poisoned")
    return tmp_path


def poison(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: torch.full_like(tensor, LARGE) for name, tensor in load_file(path).items()}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    save_file(tensors, path)


@pytest.fixture(params=["none", "int8"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """On the native kernels, where a row's bits are its own."""
    cache = make_cache(folder / "cache")
    config = load_config(
        flags={
            "model.base": str(folder / "base"),
            "model.kernels": "native",
            "model.quantize": request.param,
            "model.threads": 2,
            "model.cache_dir": str(cache),
            "adapters.roots": (str(folder / "adapters"),),
            "adapters.bank_bytes": 700_000,
            "adapters.quarantine_hits": HITS,
            "adapters.negative_cache_s": 0.0,  # the quarantine must not end with the memory of a failure
            "engine.max_model_len": 128,
            "engine.max_step_tokens": 64,
            "engine.kv_bytes": 1 << 22,
            "engine.max_running": 8,
        },
        environ={},
    )
    engine = build_engine(config, lambda line: None)[0]
    yield engine
    engine.close()


def ref(name: str) -> AdapterRef:
    return AdapterRef(SourceName.LOCAL, name)


def asked(number: int, adapter: str | None) -> Request:
    return Request(
        id=RequestId(f"{adapter} {number}"),
        flow=Flow("f"),
        salt=str(number),  # no request reads what another has cached
        tokens=tuple(5 + (number * 7 + index) % 90 for index in range(9 + number)),
        adapter=None if adapter is None else ref(adapter),
        sampling=SamplingParams(temperature=0.7, seed=number, num_logprobs=2),
        stop=StopParams(max_new_tokens=10, ignore_eos=True),
    )


Run = tuple[dict[RequestId, list[TokenEvent]], dict[RequestId, Finished]]


def run(engine: Engine, requests: list[Request]) -> Run:
    tokens: dict[RequestId, list[TokenEvent]] = {request.id: [] for request in requests}
    ends: dict[RequestId, Finished] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        events = engine.step()
        for token in events.tokens:
            tokens[token.request_id].append(token)
        ends.update({end.request_id: end for end in events.finished})
    engine.check()
    return tokens, ends


def said(events: list[TokenEvent]) -> list[tuple[object, ...]]:
    return [(event.token_id, event.logprob, event.alternatives) for event in events]


def test_a_poisoned_adapter_changes_no_bit_beside_it_and_is_refused_after_its_hits(
    engine: Engine, folder: Path
) -> None:
    healthy = [asked(number, adapter) for number, adapter in enumerate(("good", None, "other", "good"))]
    run(engine, [asked(9, name) for name in ("good", "other")])  # so that no adapter is loaded in the runs compared
    alone, _ = run(engine, healthy)
    mixed, ends = run(engine, [asked(20, "poisoned"), *healthy])
    for request in healthy:
        assert said(mixed[request.id]) == said(alone[request.id])
        assert ends[request.id].reason is FinishReason.LENGTH
    assert_poisoned(ends[RequestId("poisoned 20")])
    assert mixed[RequestId("poisoned 20")] == []
    assert engine.info(ref("poisoned")).state is AdapterState.ON_DEVICE  # one hit

    _, ends = run(engine, [asked(21, "poisoned")])
    assert_poisoned(ends[RequestId("poisoned 21")])
    info = engine.info(ref("poisoned"))
    assert info.state is AdapterState.FAILED
    digest = info.digest
    for number in (22, 23):
        mixed, ends = run(engine, [asked(number, "poisoned"), *healthy])
        failure = ends[RequestId(f"poisoned {number}")].failure
        assert failure is not None
        assert failure.error == "AdapterCorrupt"
        assert failure.message == (
            "Adapter 'poisoned' is not served: the logits of 2 requests were not finite. A new version of it will be"
        )
        for request in healthy:
            assert said(mixed[request.id]) == said(alone[request.id])
    assert engine.stats().adapters.on_device == 2

    path = folder / "adapters" / "poisoned" / "adapter_model.safetensors"
    path.write_bytes((folder / "adapters" / "good" / "adapter_model.safetensors").read_bytes())
    _, ends = run(engine, [asked(24, "poisoned")])
    assert ends[RequestId("poisoned 24")].reason is FinishReason.LENGTH
    assert engine.info(ref("poisoned")).digest != digest


def assert_poisoned(end: Finished) -> None:
    assert end.reason is FinishReason.ENGINE_FAILURE
    assert end.failure is not None
    assert end.failure.message == "Request failed during generation: the logits are not finite"
