"""Embeddings and classes of the whole engine: those of transformers and PEFT, and the same bits in any batch."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason
from manylora.engine.pooling import Floats, Pooling
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.kernels.select import select_kernels
from manylora.wiring.engine import build_engine
from tests.conftest import long
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.classifiers import make_classifier, oracle_classes, oracle_hidden
from tests.support.serving import make_cache
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, TinyBase, make_adapter, make_base

PLAIN = {
    "small": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "large": LoraConfig(r=24, lora_alpha=16, use_rslora=True, target_modules=ALL),
    "norm": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["norm"]),
}
HEADS = {
    "texts": (LoraConfig(r=6, lora_alpha=9, target_modules=ALL, task_type="SEQ_CLS"), 3),
    "one": (LoraConfig(r=3, lora_alpha=3, target_modules=["o_proj"], task_type="SEQ_CLS"), 1),
    "tokens": (LoraConfig(r=12, lora_alpha=12, target_modules=["q_proj", "down_proj"], task_type="TOKEN_CLS"), 5),
}
TOLERANCE = 2e-5
BLOCK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    folder = tmp_path_factory.mktemp("pooling")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(base.directory)
    for seed, (name, config) in enumerate(PLAIN.items()):
        make_adapter(base, folder / "adapters" / name, config, seed=seed)
    for name, (config, num_labels) in HEADS.items():
        make_classifier(base, folder / "adapters" / name, config, num_labels, seed=len(name))
    return base


def adapter_folder(base: TinyBase, name: str) -> Path:
    return base.directory.parent / "adapters" / name


def open_engine(base: TinyBase, kernels_name: str, *, rows: int, kv_blocks: int) -> Engine:
    kernels = select_kernels(kernels_name, 1)
    if kernels.name != kernels_name:
        pytest.skip(f"{kernels_name} does not work here")
    block_bytes = kernels.form.kv_block_bytes(layers=3, block_size=BLOCK, kv_heads=2, head_dim=8)
    flags: dict[str, str | int | tuple[str, ...]] = {
        "model.base": str(base.directory),
        "model.kernels": kernels_name,
        "model.threads": 2,
        "model.cache_dir": str(make_cache(base.directory.parent / f"cache-{kernels_name}-{rows}")),
        "adapters.roots": (str(base.directory.parent / "adapters"),),
        "adapters.bank_bytes": 400_000,
        "engine.max_model_len": 128,
        "engine.block_size": BLOCK,
        "engine.max_step_tokens": rows,
        "engine.kv_bytes": kv_blocks * block_bytes,
        "engine.max_running": 6,
    }
    return build_engine(load_config(flags=flags, environ={}), lambda line: None)[0]


@pytest.fixture(scope="module")
def reference(base: TinyBase) -> Iterator[Engine]:
    engine = open_engine(base, "reference", rows=16, kv_blocks=200)
    yield engine
    engine.close()


def pooled(tokens: list[int], pooling: Pooling | None, adapter: str | None = None, *, salt: str = "") -> Request:
    """Return a request for a pooled result, or for 24 tokens."""
    return Request(
        id=mint_request_id(),
        flow=Flow("a"),
        salt=salt,
        tokens=tuple(tokens),
        adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=24 if pooling is None else 0, ignore_eos=True),
        pooling=pooling,
    )


def run(engine: Engine, requests: list[Request]) -> dict[RequestId, Finished]:
    """Return the end of each request; all are under way at once."""
    ended: dict[RequestId, Finished] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        ended |= {end.request_id: end for end in engine.step().finished}
    engine.check()
    return ended


def values(end: Finished) -> Floats:
    assert end.failure is None, end.failure
    assert end.pooled is not None
    return np.frombuffer(end.pooled.data, dtype="<f4").reshape(-1, end.pooled.columns)


def result(engine: Engine, request: Request) -> Floats:
    return values(run(engine, [request])[request.id])


def tokens_of(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, BYTE_LEVEL_VOCAB) for _ in range(length)]


@pytest.mark.parametrize("name", [None, *PLAIN, "texts"])
@pytest.mark.parametrize("length", [1, 45])
def test_an_embedding_is_the_pooled_hidden_state_of_transformers(
    reference: Engine, base: TinyBase, name: str | None, length: int
) -> None:
    tokens = tokens_of(length, length)
    folder = None if name is None else adapter_folder(base, name)
    hidden = oracle_hidden(base, folder, tokens).double().numpy()
    for pooling, expected in ((Pooling.MEAN, hidden.mean(axis=0)), (Pooling.LAST, hidden[-1])):
        found = result(reference, pooled(tokens, pooling, name))
        assert found.shape == (1, 48)
        assert np.abs(found[0] - expected / np.linalg.norm(expected)).max() <= TOLERANCE


@pytest.mark.parametrize(("name", "length"), [("texts", 1), ("texts", 40), ("one", 17)])
def test_the_classes_of_a_text_are_those_of_peft(reference: Engine, base: TinyBase, name: str, length: int) -> None:
    tokens = tokens_of(length, length)
    expected = oracle_classes(base, adapter_folder(base, name), "SEQ_CLS", HEADS[name][1], tokens).numpy()
    found = result(reference, pooled(tokens, Pooling.CLASSES, name))
    assert found.shape == (1, HEADS[name][1])
    assert np.abs(found[0] - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_the_classes_of_tokens_are_those_of_peft(reference: Engine, base: TinyBase) -> None:
    tokens = tokens_of(3, 53)
    logits = oracle_classes(base, adapter_folder(base, "tokens"), "TOKEN_CLS", 5, tokens)
    expected = logits.softmax(dim=-1).max(dim=-1)
    found = result(reference, pooled(tokens, Pooling.TOKEN_CLASSES, "tokens"))
    assert found[:, 0].tolist() == expected.indices.tolist()
    assert np.abs(found[:, 1] - expected.values.numpy()).max() <= TOLERANCE


def mixed_requests() -> list[Request]:
    """Requests of every kind, more than run at once; some share the first half of their prompt."""
    source = random.Random(7)
    kinds: list[tuple[Pooling | None, str | None]] = [
        *((pooling, name) for pooling in (None, Pooling.MEAN, Pooling.LAST) for name in (None, *PLAIN)),
        (Pooling.MEAN, "texts"),
        *((Pooling.CLASSES, name) for name in ("texts", "one")),
        (Pooling.TOKEN_CLASSES, "tokens"),
    ] * 2
    source.shuffle(kinds)
    shared = tokens_of(1, 24)
    return [
        pooled([*shared[: source.choice((0, 24))], *tokens_of(seed, source.randint(1, 50))], *kind)
        for seed, kind in enumerate(kinds)
    ]


@pytest.fixture(params=["native", *long("native-bf16")])
def pair(base: TinyBase, request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Engine]]:
    """A crowded engine, which chunks and preempts, and a roomy one."""
    crowded = open_engine(base, request.param, rows=16, kv_blocks=36)
    roomy = open_engine(base, request.param, rows=256, kv_blocks=800)
    yield crowded, roomy
    crowded.close()
    roomy.close()


def outgrowing_requests() -> list[Request]:
    """Four generations of the base that outgrow their blocks, and then embeddings, which lose theirs halfway."""
    generations = [pooled(tokens_of(seed, 6), None) for seed in range(4)]
    return [*generations, *(pooled(tokens_of(seed, 50), Pooling.MEAN) for seed in (8, 9))]


def test_a_mixed_batch_gives_each_request_the_bits_that_it_gets_alone(pair: tuple[Engine, Engine]) -> None:
    crowded, roomy = pair
    requests = [*outgrowing_requests(), *mixed_requests()]
    together = run(crowded, requests)
    assert crowded.stats().preemptions > 0
    assert crowded.stats().cached_tokens > 0
    for request in requests:
        end = together[request.id]
        assert end.reason is FinishReason.LENGTH, end
        if request.pooling is not None:
            assert end.counts.completion_tokens == 0
            assert end.counts.computed_tokens == len(request.tokens)
            alone = result(roomy, pooled(list(request.tokens), request.pooling, _name(request)))
            assert values(end).tobytes() == alone.tobytes(), request


def _name(request: Request) -> str | None:
    return None if request.adapter is None else request.adapter.id


def test_only_results_of_the_last_position_use_the_prefix_cache(reference: Engine) -> None:
    tokens = tokens_of(11, 40)
    for pooling, name, cached in (
        (Pooling.LAST, None, True),
        (Pooling.MEAN, None, False),
        (Pooling.CLASSES, "texts", True),
        (Pooling.TOKEN_CLASSES, "tokens", False),
    ):
        first, second = (pooled(tokens, pooling, name, salt=f"{pooling}") for _ in range(2))
        before, after = run(reference, [first])[first.id], run(reference, [second])[second.id]
        assert before.counts.cached_tokens == 0
        assert (after.counts.cached_tokens > 0) is cached
        assert np.abs(values(after) - values(before)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("pooling", "name", "refusal"),
    [
        (Pooling.CLASSES, None, "the base model has no classification head; name an adapter that has one"),
        (Pooling.CLASSES, "small", "Adapter 'small' has no classification head"),
        (Pooling.TOKEN_CLASSES, "small", "Adapter 'small' has no classification head"),
        (Pooling.CLASSES, "tokens", "Adapter 'tokens' gives classes of tokens, not classes of whole texts"),
        (Pooling.TOKEN_CLASSES, "one", "Adapter 'one' gives classes of whole texts, not classes of tokens"),
        (None, "texts", "Adapter 'texts' has a classification head and generates no text"),
    ],
)
def test_what_an_adapter_does_not_give_is_refused_by_its_name(
    reference: Engine, pooling: Pooling | None, name: str | None, refusal: str
) -> None:
    request = pooled([5, 6], pooling, name)
    end = run(reference, [request])[request.id]
    assert end.reason is FinishReason.REJECTED
    assert end.failure is not None
    assert end.failure.to_error().message == refusal


def test_an_aborted_embedding_leaves_nothing_behind(reference: Engine) -> None:
    request = pooled(tokens_of(5, 60), Pooling.MEAN)
    reference.submit(request)
    reference.step()
    reference.abort(request.id, FinishReason.DISCONNECT)
    (end,) = reference.step().finished
    assert end.pooled is None
    assert 0 < end.counts.computed_tokens < 60
    reference.check()
