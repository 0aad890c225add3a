"""Several ranks of one base in the threads of this process, over gloo: each has its share of weights and adapters."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from manylora.adapters.banks.image_share import share_of
from manylora.engine.execution.ranks.group import join_group
from manylora.kernels.collectives import Collectives
from manylora.kernels.interface import Kernels
from manylora.kernels.reference import ReferenceKernels
from manylora.models.llama import LlamaModel
from manylora.models.spec import read_spec
from manylora.models.tensor_parallel import Share
from manylora.models.weights import load_weights
from tests.support.forward import Mixed, Prompts, ReadyAdapter, run

TIMEOUT_S = 60.0
Result = TypeVar("Result")


def with_ranks(size: int, call: Callable[[Collectives], Result]) -> list[Result]:
    """Call a function once for each rank, side by side; return the results by rank."""
    meeting = HashStore()
    with ThreadPoolExecutor(size) as pool:
        calls = [
            pool.submit(lambda rank=rank: call(join_group("gloo", meeting, rank, size, TIMEOUT_S)))  # type: ignore[misc]
            for rank in range(size)
        ]
        return [one.result() for one in calls]


def run_shared(
    base: Path, size: int, prompts: Prompts, open_kernels: Callable[[], Kernels] = ReferenceKernels
) -> list[Tensor]:
    """As `forward.run`, by a model of `size` ranks."""
    spec = read_spec(base)

    def logits(ranks: Collectives) -> list[Tensor]:
        kernels, share = open_kernels(), Share(spec, size, ranks.rank)
        weights = load_weights(base, spec, kernels, share=share)
        model = LlamaModel(spec, weights, kernels, share=share, ranks=ranks)
        with torch.inference_mode():
            return run(model, [(tokens, _shared(ready, share)) for tokens, ready in prompts])

    return with_ranks(size, logits)[0]


def _shared(ready: ReadyAdapter | Mixed | None, share: Share) -> ReadyAdapter | Mixed | None:
    if isinstance(ready, list):
        return [(_own(one, share), weight) for one, weight in ready]
    return None if ready is None else _own(ready, share)


def _own(ready: ReadyAdapter, share: Share) -> ReadyAdapter:
    return ReadyAdapter(share_of(ready.weights, share), ready.invocation_tokens)
