"""Each base's features give the logits and greedy tokens of transformers and PEFT, in any cut and any batch."""

import json

import pytest
import torch

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterHandle
from manylora.engine.execution.batch import BatchBuilder
from manylora.engine.execution.runner import Runner
from manylora.ids import RequestId
from manylora.kernels.reference import ReferenceKernels
from manylora.models.llama import LlamaModel
from manylora.models.spec import parse_spec
from manylora.models.weights import load_weights
from tests.conftest import thinned
from tests.engine.simulation.executor import SimulatedExecutor
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.world import World
from tests.models.parity.rows import LENGTH, ROWS
from tests.models.parity.tiny import ADAPTERS, Tiny, make_tiny
from tests.models.test_llama import run_in_chunks
from tests.support.forward import ReadyAdapter, load_model, place, run

NATIVE = ("native", "native-bf16")
BACK_ENDS = ("reference", *NATIVE)
TOLERANCE = 1e-4
"""Largest difference of a logit between the float32 reference and transformers."""
ROUNDED = {"native": 0.005, "native-bf16": 0.03}
"""Difference between native kernels and the reference with weights, keys, values and adapters in bf16.

Of `native` it is the largest, as a share of the largest logit: a last bit that differs may round a key to its neighbour
(5.3e-4 measured). Products of bf16 pairs round their activations, too, and a router may then choose another expert for
a position: their difference is the mean, as a share of the mean logit (0.013 measured).
"""

NAMES = (None, *ADAPTERS)
PROMPT = [(11 * position) % 89 + 3 for position in range(LENGTH)]
BLOCK = 4


class Served:
    """One row: the tiny files, our models on the back ends that work here, and the placed adapters of each."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny = tiny
        self.models = {name: load_model(tiny.base, name, 1) for name in BACK_ENDS}
        self.placed: dict[str, dict[str | None, ReadyAdapter | None]] = {}
        for back_end, model in self.models.items():
            if model.kernels.name != back_end:
                continue  # this processor lacks its instructions
            own: dict[str | None, ReadyAdapter | None] = {None: None}
            for name, folder in tiny.adapters.items():
                own[name] = place(folder, model.spec, model.kernels, tiny.base)
            self.placed[back_end] = own

    def world(self, back_end: str, *, num_blocks: int, max_rows: int) -> World:
        """An engine over the model of one back end, whose store has the adapters."""
        model = self.models[back_end]
        weights = {ready.weights.digest: ready.weights for ready in self.placed[back_end].values() if ready is not None}
        spec, kernels = model.spec, model.kernels

        def runner(simulated: SimulatedExecutor) -> Runner:
            kv = kernels.new_kv(
                layers=spec.num_layers,
                num_blocks=num_blocks,
                block_size=BLOCK,
                kv_heads=spec.kv_heads,
                head_dim=spec.head_dim,
            )
            builder = BatchBuilder(
                kernels, weights, max_rows=max_rows, block_size=BLOCK, vocab=spec.vocab, hidden=spec.hidden
            )
            return Runner(model, kv, builder, kernels.sample, kernels.mask_logits)

        handles = [handle(n, ready) for n, ready in self.placed[back_end].items() if ready is not None]
        return World(
            store=SimulatedStore(capacity=len(handles), resident={own.ref: own for own in handles}),
            num_blocks=num_blocks,
            block_size=BLOCK,
            max_rows=max_rows,
            max_running=6,
            sliding_window=spec.kv_window,
            open_executor=runner,
        )


def handle(name: str | None, ready: ReadyAdapter) -> AdapterHandle:
    assert name is not None  # the base has no adapter
    weights = ready.weights
    return AdapterHandle(
        ref=AdapterRef(SourceName.LOCAL, name), digest=weights.digest, has_extras=weights.extras.size > 0
    )


@pytest.fixture(scope="module", params=thinned(ROWS, 4))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(make_tiny(ROWS[request.param], tmp_path_factory.mktemp(request.param)))


def skip_without(served: Served, back_end: str) -> None:
    if back_end not in served.placed:
        pytest.skip(f"{back_end} does not work here")


def submit_all(world: World) -> dict[RequestId, tuple[str | None, list[int]]]:
    """Three requests of the base and of each adapter.

    One is shorter than a window, and outgrows the blocks that it is admitted with. Two are longer, and share a half.
    """
    prompts = (PROMPT[5:8], PROMPT[:20], [*PROMPT[:12], *PROMPT[30:41]])
    return {world.submit(prompt, adapter=name, budget=8): (name, prompt) for prompt in prompts for name in NAMES}


def test_logits_are_those_of_transformers_with_every_adapter_in_one_batch(served: Served) -> None:
    found = run(served.models["reference"], [(PROMPT, served.placed["reference"][name]) for name in NAMES])
    for name, logits in zip(NAMES, found, strict=True):
        error = (logits - served.tiny.logits(name, PROMPT)).abs().max().item()
        assert error <= TOLERANCE, f"{name}: largest error {error}"


@pytest.mark.parametrize("back_end", NATIVE)
def test_native_logits_are_those_of_the_reference_in_the_same_dtypes(served: Served, back_end: str) -> None:
    skip_without(served, back_end)
    native, prompts = served.models[back_end], [(PROMPT, served.placed[back_end][name]) for name in NAMES]
    kernels = ReferenceKernels(torch.bfloat16, kv_dtype=torch.bfloat16, lora_dtype=torch.bfloat16)
    rounded = LlamaModel(native.spec, load_weights(served.tiny.base, native.spec, kernels), kernels)
    for name, logits, expected in zip(NAMES, run(native, prompts), run(rounded, prompts), strict=True):
        difference, size = (logits - expected).abs(), expected.abs()
        error = difference.max() / size.max() if back_end == "native" else difference.mean() / size.mean()
        assert error.item() <= ROUNDED[back_end], f"{name}: {error.item()}"


def test_a_prompt_cut_anywhere_gives_the_same_logits(served: Served) -> None:
    tokens, reference, native = torch.tensor(PROMPT), served.models["reference"], served.models["native"]
    whole = run_in_chunks(native, tokens, [LENGTH])
    for cut in range(1, LENGTH):
        assert torch.equal(run_in_chunks(native, tokens, [cut, LENGTH - cut]), whole), cut
    expected = served.tiny.logits(None, PROMPT)
    for sizes in ([1] * LENGTH, [7, 13, 20], [LENGTH - 1, 1]):
        assert (run_in_chunks(reference, tokens, sizes) - expected).abs().max().item() <= TOLERANCE


def test_greedy_tokens_are_those_of_transformers_in_a_crowded_engine(served: Served) -> None:
    world = served.world("reference", num_blocks=9, max_rows=12)
    requests = submit_all(world)
    world.run()
    assert world.engine.stats().preemptions > 0
    for request, (name, prompt) in requests.items():
        tokens = world.tokens[request]
        logits = served.tiny.logits(name, [*prompt, *tokens])[len(prompt) - 1 : -1]
        assert len(tokens) == 8
        assert (logits.max(dim=-1).values - logits[range(8), tokens]).max().item() <= 2 * TOLERANCE


@pytest.mark.parametrize("back_end", NATIVE)
def test_a_mixed_batch_gives_each_request_the_tokens_that_it_gets_alone(served: Served, back_end: str) -> None:
    skip_without(served, back_end)
    crowded, roomy = (
        served.world(back_end, num_blocks=9, max_rows=12),
        served.world(back_end, num_blocks=400, max_rows=64),
    )
    requests = submit_all(crowded)
    crowded.run()
    assert crowded.engine.stats().preemptions > 0
    for request, (name, prompt) in requests.items():
        lone = roomy.submit(prompt, adapter=name, budget=8)
        roomy.run()
        assert crowded.tokens[request] == roomy.tokens[lone]
    assert roomy.engine.stats().preemptions == 0
    assert roomy.engine.stats().cached_tokens >= len(NAMES) * 8  # the second request of each name has a cached prefix


def test_each_feature_shows_in_the_logits(served: Served) -> None:
    model = served.models["reference"]
    config = json.loads((served.tiny.base / "config.json").read_text())
    [expected] = run(model, [(PROMPT, None)])
    for change in served.tiny.row.without:
        spec = parse_spec({**config, **change}, {})
        other = LlamaModel(spec, model.weights, model.kernels)
        [found] = run(other, [(PROMPT, None)])
        assert (found - expected).abs().max().item() > 0.01, change
