"""The seam between the engine and the arithmetic: a back end, and a model's forward pass in its form."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits, StepCounts
from manylora.kernels.collectives import Collectives
from manylora.kernels.lora_batch import LoraBatch, LoraSegment
from manylora.kernels.operands import KvCache, Packed, StepInput
from manylora.kernels.sampling import RowNumbers, SamplingRules, TokenMasks, TokenScore
from manylora.kernels.storage_form import StorageForm
from manylora.kernels.table_of_operations import Operations, Rows
from manylora.kernels.weight_groups import WeightGroups
from manylora.kernels.weight_rows import WeightRows


class Forward(Protocol):
    """A model's forward pass, written in `Operations` alone: the same ones in the same order for every step."""

    def __call__(self, ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        """Return the logits of `step.logit_rows`, (sampled, vocab) float32."""


class CompiledForward(Protocol):
    """A forward pass in the form of one back end."""

    def __call__(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        """Return the logits of `step.logit_rows`, (sampled, vocab) float32.

        Args:  reuse  an earlier result that the caller needs no more; the logits may take its memory
        """


@runtime_checkable
class PreparedForward(CompiledForward, Protocol):
    """A `CompiledForward` that can do before the first step what the steps of decoding would do at first."""

    def prepare(self, kv: KvCache) -> int:
        """Capture every size and kind of step on these keys and values, which stay unchanged; return their number."""


class Copy(Protocol):
    """A copy from host memory to the device. `tensor`, on the device, is read only once the copy has ended."""

    @property
    def tensor(self) -> Tensor: ...

    def has_ended(self) -> bool:
        """Return whether the copy has ended; later steps may read the tensor then. Does not wait."""

    def wait(self) -> None:
        """Wait until the copy has ended, where no step follows: its source is about to be freed."""


class Copies(Protocol):
    """Copies of adapters to the device, beside the steps where the device can."""

    def begin(self, source: Tensor) -> Copy:
        """Begin to copy a tensor of host memory, which does not change until the end."""

    def lock_pages(self, memory: Tensor) -> None:
        """Keep the pages of a tensor in memory, from which `begin` will copy, where that makes copies faster."""

    def unlock_pages(self, memory: Tensor) -> None:
        """Undo `lock_pages`, before the memory is freed."""


class Profile(Protocol):
    """Time spent in kernels since the start of the profile."""

    def seconds(self) -> dict[str, float]:
        """Return the seconds by operation."""


class Kernels(Protocol):
    """One back end. All tensors are on its device.

    device              type of that device, as torch names it
    own_memory_bytes    free bytes of that device's own memory at the start; None: it computes on host memory
    owns_threads        True if the back end computes on threads of its own, so that torch's would spin beside them
    weight_dtype        dtype of packed weights
    form                bytes of weights, of keys and values, and of adapters
    activation_dtype    dtype of the residual stream and of every (rows, …) tensor between methods
    kv_dtype            dtype of the paged keys and values
    lora_dtype          dtype of adapters' images
    is_row_independent  True if a row's result has the same bits whatever other rows the step holds
    steps               numbers of steps that compiled forwards replayed and did not, on a back end that can do either
    """

    name: str
    device: str
    own_memory_bytes: int | None
    owns_threads: bool
    weight_dtype: torch.dtype
    form: StorageForm
    activation_dtype: torch.dtype
    kv_dtype: torch.dtype
    lora_dtype: torch.dtype
    is_row_independent: bool
    steps: StepCounts

    def pack(self, weight: WeightRows) -> Packed:
        """Return `weight` (out, in), any float dtype, in this back end's layout, for `embed`, `linear` and `logits`.

        The rows are read piece by piece (`row_pieces`): the result and one piece are in memory at once.
        """

    def pack_table(self, weight: WeightRows) -> Packed:
        """As `pack`, for the embedding and the head, which may need more bits than the layers."""

    def pack_groups(self, weight: WeightGroups) -> Packed:
        """Pack a weight that is stored in four bits.

        The native kernels keep the levels, and scales and minima as float16 in units of a power of two for each
        output. The reference widens them to its own dtype. Raises ValueError for a group size that is not allowed.
        """

    def place(self, constant: Tensor) -> Tensor:
        """Return a tensor that is the same in every step (norm, bias, router, angles) on this back end's device."""

    def copies(self) -> Copies:
        """Return the copies of adapters to this back end's device."""

    def compile(
        self, forward: Forward, ranks: Collectives | None = None, limits: CaptureLimits | None = None
    ) -> CompiledForward:
        """Return a function that runs `forward` as fast as this back end can.

        The function stages the step, whose tensors are in host memory, on the device. Its results have the bits that
        the same operations give one by one.

        Args:  ranks   of a model that several processes compute together; its logits are those of rank 0
               limits  of steps that a back end may capture for replays, where it computes steps in both ways; None:
                       none is captured
        """

    def start_profile(self) -> Profile | None:
        """Start to time compiled forwards and sampling by operation; return None if this back end cannot."""

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        """Return each row's token and its highest logit, as `sampling.sample_tokens`; logits (rows, vocab) float32.

        A token may differ from the one of `sample_tokens` where a sum differs in its last bits. One back end gives the
        same token for the same row, whatever the other rows.
        """

    def score(self, logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenScore]:
        """Return the scores of given tokens, one for each row of logits, as `sampling.score_tokens`."""

    def mask_logits(self, logits: Tensor, rows: RowNumbers, masks: TokenMasks) -> None:
        """Set the logits of tokens outside their row's mask to -Inf, in place, as `sampling.mask_logits`."""

    def new_kv(self, *, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KvCache:
        """Allocate the paged keys and values of all layers: `form.kv_block_bytes` for each block."""

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        """Return the batch of these segments in the form that the operations read; it serves every step with them."""
