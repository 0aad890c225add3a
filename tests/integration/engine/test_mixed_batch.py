"""The whole engine, real arithmetic: any mix of requests gives each the tokens it gets alone."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import LoraConfig

from manylora.adapter_ref import AdapterRef, SourceName, mixed_ref
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.kernels.select import select_kernels
from manylora.wiring.engine import build_engine
from tests.conftest import long
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.peft_grid import Case, save_case
from tests.support.serving import make_cache
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, make_adapter, make_base

SHAPES = {
    "small": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "medium": LoraConfig(r=12, lora_alpha=12, target_modules=ALL),
    "large": LoraConfig(r=64, lora_alpha=16, use_rslora=True, target_modules=ALL),
    "partial": LoraConfig(r=6, lora_alpha=9, target_modules=["gate_proj", "o_proj"], layers_to_transform=[0, 2]),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=[*ALL, "lm_head"]),
    "ends": LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "v_proj"]),
    "saved": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "tokens": LoraConfig(r=2, lora_alpha=4, target_modules=["k_proj"], trainable_token_indices=[5, 9, 77]),
    "bias": LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], lora_bias=True),
    "activated": LoraConfig(
        r=8, lora_alpha=16, target_modules=ALL, alora_invocation_tokens=[50, 51], task_type="CAUSAL_LM"
    ),
}
INVOCATION = (50, 51)
ADDED = 21  # tokens that one adapter more, "added", has of its own
MIXES = {
    "mix of two": (("small", 0.5), ("large", -1.25)),
    "mix of the same two": (("large", -1.25), ("small", 0.5)),
    "mix of four": (("partial", 2.0), ("small", 1.0), ("medium", 0.25), ("large", 1e-3)),
    "one, weighted": (("medium", 0.75),),
}
NAMES = (None, "added", *SHAPES, *MIXES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(folder / "base")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        make_adapter(base, folder / "adapters" / name, shape, seed=seed)
    save_case(
        Case({"r": 4, "target_modules": ["q_proj", "lm_head", "embed_tokens"]}, added=ADDED),
        base,
        folder / "adapters" / "added",
        seed=2,
    )
    broken = folder / "adapters" / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "native",
        *long("int8", "native-bf16", "int4", "reference"),
    ],
)
def pair(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Engine, int]]:
    """A crowded engine (few blocks, small steps, so that it chunks and preempts), a roomy one, and a load for them.

    The reference back end is loops: fewer requests there, which still chunk and preempt.
    """
    made = []
    is_quantised = request.param in ("int8", "int4")
    kernels_name, quantize = ("native", request.param) if is_quantised else (request.param, "none")
    # One block size for both: attention sums block by block, and where a last bit differs int8 may take another level.
    block = 4
    for name, rows, kv_blocks in (("crowded", 16, 34), ("roomy", 256, 1600)):
        kernels = select_kernels(kernels_name, 1)
        if kernels.name != kernels_name:
            pytest.skip(f"{kernels_name} does not work here")
        kv_block_bytes = kernels.form.kv_block_bytes(layers=3, block_size=block, kv_heads=2, head_dim=8)
        cache = make_cache(folder / f"cache-{request.param}-{name}")
        config = load_config(
            flags={
                "model.base": str(folder / "base"),
                "model.kernels": kernels_name,
                "model.quantize": quantize,
                "model.threads": 2,
                "model.cache_dir": str(cache),
                "adapters.roots": (str(folder / "adapters"),),
                "adapters.bank_bytes": 700_000,
                "engine.max_model_len": 128,
                "engine.block_size": block,
                "engine.max_step_tokens": rows,
                "engine.kv_bytes": kv_blocks * kv_block_bytes,
                "engine.max_running": min(8, rows),
            },
            environ={},
        )
        made.append(build_engine(config, lambda line: None)[0])
    yield made[0], made[1], len(NAMES) if request.param == "reference" else 3 * len(NAMES)
    for engine in made:
        engine.close()


def random_requests(source: random.Random, count: int) -> list[Request]:
    """Requests in random order, of the base and of every adapter in turn."""
    names = [NAMES[number % len(NAMES)] for number in range(count)]
    source.shuffle(names)
    return [random_request(source, name) for name in names]


def random_request(source: random.Random, name: str | None) -> Request:
    sampling = source.choice(
        [
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=0.0, repetition_penalty=1.3),
            SamplingParams(temperature=0.9, seed=source.randrange(1 << 50)),
            SamplingParams(temperature=1.3, top_k=20, top_p=0.9, seed=source.randrange(1 << 50), num_logprobs=2),
        ]
    )
    known = BYTE_LEVEL_VOCAB + (ADDED if name == "added" else 0)
    tokens = [source.randrange(3, known) for _ in range(source.randint(1, 60))]
    at = source.randint(0, len(tokens))
    return Request(
        id=mint_request_id(),
        flow=Flow(source.choice("ab")),
        salt="",
        tokens=(*tokens[:at], *INVOCATION, *tokens[at:]),
        adapter=None if name is None else reference(name),
        sampling=sampling,
        stop=StopParams(max_new_tokens=source.randint(1, 24), ignore_eos=True),
    )


def reference(name: str) -> AdapterRef:
    if name not in MIXES:
        return AdapterRef(SourceName.LOCAL, name)
    members = [AdapterRef(SourceName.LOCAL, member) for member, _ in MIXES[name]]
    return mixed_ref(members, [weight for _, weight in MIXES[name]])


def outgrowing_requests() -> list[Request]:
    """Eight of the base, which the crowded engine admits at once (4 of 34 blocks each) and cannot finish so (10 each).

    Without an adapter none of them waits for a load, so that the preemption does not hang on how fast a file was read.
    """
    return [
        Request(
            id=mint_request_id(),
            flow=Flow("a"),
            salt="",
            tokens=tuple(range(3 + row, 17 + row)),
            adapter=None,
            sampling=SamplingParams(temperature=0.0),
            stop=StopParams(max_new_tokens=24, ignore_eos=True),
        )
        for row in range(8)
    ]


def run(engine: Engine, requests: list[Request]) -> tuple[dict[RequestId, list[int]], dict[RequestId, Finished]]:
    tokens: dict[RequestId, list[int]] = {request.id: [] for request in requests}
    ends: dict[RequestId, Finished] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        events = engine.step()
        for token in events.tokens:
            tokens[token.request_id].append(token.token_id)
        ends.update({end.request_id: end for end in events.finished})
    engine.check()
    return tokens, ends


def test_a_mixed_batch_equals_each_request_alone(pair: tuple[Engine, Engine, int]) -> None:
    crowded, roomy, count = pair
    source = random.Random(7)
    requests = [*outgrowing_requests(), *random_requests(source, count)]
    mixed, ends = run(crowded, requests)
    assert all(end.reason == FinishReason.LENGTH for end in ends.values())
    for request in requests:
        alone, _ = run(roomy, [request])
        assert mixed[request.id] == alone[request.id]
    assert crowded.stats().preemptions > 0
    assert roomy.stats().preemptions == 0


def test_a_broken_adapter_ends_its_own_request_alone(pair: tuple[Engine, Engine, int]) -> None:
    crowded, roomy, count = pair
    source = random.Random(8)
    healthy = random_requests(source, count // 4)
    broken = Request(
        id=mint_request_id(),
        flow=Flow("a"),
        salt="",
        tokens=(5, 6, 7),
        adapter=AdapterRef(SourceName.LOCAL, "broken"),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=4),
    )
    mixed, ends = run(crowded, [broken, *healthy])
    failure = ends[broken.id].failure
    assert failure is not None
    assert failure.error == "AdapterCorrupt"
    assert mixed[broken.id] == []
    for request in healthy:
        assert mixed[request.id] == run(roomy, [request])[0][request.id]


def test_an_adapter_changes_the_answer(pair: tuple[Engine, Engine, int]) -> None:
    _, roomy, _ = pair
    answers = set()
    for adapter in (None, *SHAPES):
        request = Request(
            id=mint_request_id(),
            flow=Flow("a"),
            salt="",
            tokens=(*range(5, 20), *INVOCATION, 77),
            adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
            sampling=SamplingParams(temperature=0.0),
            stop=StopParams(max_new_tokens=12, ignore_eos=True),
        )
        answers.add(tuple(run(roomy, [request])[0][request.id]))
    assert len(answers) == 1 + len(SHAPES)
