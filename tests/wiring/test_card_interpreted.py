"""The whole engine on kernels in Triton's interpreter: each request gets the tokens of the torch kernels alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.store.store import Store
from manylora.engine.engine import Engine
from manylora.errors import AdapterNotFound
from manylora.ids import Digest
from manylora.kernels.cuda.backend import TorchKernels
from tests.kernels.cuda.interpreted import require_triton
from tests.wiring.test_card import MIB, NAMES, folder, open_engine, request, run

require_triton()
from manylora.kernels.cuda.jit.backend import TritonKernels  # noqa: E402 - after the check
from tests.kernels.cuda.recorder import RecordedGraphs  # noqa: E402 - it imports Triton

__all__ = ["folder"]


@pytest.fixture
def engines(folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """A crowded engine in the interpreter with captured steps, and a roomy one of torch."""
    host, made = torch.device("cpu"), []
    kernels = TritonKernels(host, torch.float32, own_memory_bytes=2048 * MIB, capture=RecordedGraphs())
    block_bytes = kernels.form.kv_block_bytes(layers=2, block_size=4, kv_heads=2, head_dim=8)
    flags = {"engine__max_step_tokens": 16, "engine__max_running": 6, "engine__kv_bytes": 16 * block_bytes}
    flags |= {"adapters__max_rank": 24, "engine__max_queue_s": 1800}  # a step takes seconds on a busy machine
    made.append(open_engine(folder, kernels, "interpreted", adapters__bank_bytes=150_000, **flags))
    made.append(open_engine(folder, TorchKernels(host, torch.float32, own_memory_bytes=2048 * MIB), "oracle"))
    yield made[0], made[1]
    for engine in made:
        engine.close()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_evicted_adapter_returns_in_the_interpreter_and_a_deleted_one_leaves_no_byte(
    engines: tuple[Engine, Engine],
) -> None:
    crowded, oracle = engines
    names = [AdapterRef(SourceName.LOCAL, name) for name in ("three", "large", "dora")]  # the bank holds two
    for name in (*names, names[0]):
        asked = request(3, name, 5, new_tokens=2)
        assert run(crowded, [asked])[asked.id] == run(oracle, [asked])[asked.id]
    assert crowded.stats().adapters.evictions > 0
    assert {AdapterState.IN_HOST, AdapterState.ON_DEVICE} <= {info.state for info in crowded.infos()}
    image = cast(Store, crowded._store).weights[Digest(crowded.info(names[0]).digest)].image
    assert image.any()
    crowded.manage(AdapterAction.DELETE, names[0])
    while crowded.tend():
        pass
    assert not image.any()
    with pytest.raises(AdapterNotFound):
        crowded.info(names[0])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_mixed_batch_in_the_interpreter_equals_each_request_alone(engines: tuple[Engine, Engine]) -> None:
    crowded, oracle = engines
    requests = [request(2 * row + 1, None, 14, new_tokens=5) for row in range(4)]  # more than the blocks hold at once
    requests += [request(20 + number, name, 5 + number, new_tokens=5) for number, name in enumerate(NAMES)]
    mixed = run(crowded, requests)
    for each in requests:
        assert mixed[each.id] == run(oracle, [each])[each.id]
    stats = crowded.stats()
    assert stats.preemptions > 0
    assert stats.replayed_steps > 4
    assert 4 < stats.eager_steps <= stats.steps - stats.replayed_steps
