"""The part that back ends of torch operations share: storage on one device, and the plain operations."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from manylora.kernels.captures.limits import StepCounts
from manylora.kernels.collectives import Collectives, join_columns, sum_over
from manylora.kernels.interface import Copies, Profile
from manylora.kernels.operands import AttentionBatch, KvCache, Packed
from manylora.kernels.plain.adapters import PlainAdapters
from manylora.kernels.plain.attention import PlainCache
from manylora.kernels.plain.copies import ImmediateCopies
from manylora.kernels.plain.experts import PlainExperts
from manylora.kernels.plain.rows import PlainRows
from manylora.kernels.plain.weights import PlainWeights
from manylora.kernels.sampling import SamplingRules, TokenScore, mask_logits, sample_tokens, score_tokens
from manylora.kernels.storage_form import StorageForm


class PlainKernels(ABC):
    """`Kernels` and `Operations` but for products, attention and `compile`, on any device of torch.

    torch chooses its summation order by shape, so rows are not bit-identical across batch sizes.

    Args:  torch_device  the device of all tensors between operations
    """

    owns_threads = False
    is_row_independent = False
    own_memory_bytes: int | None = None

    def __init__(
        self,
        torch_device: torch.device,
        *,
        weight_dtype: torch.dtype,
        kv_dtype: torch.dtype,
        lora_dtype: torch.dtype,
    ) -> None:
        self._ranks: Collectives | None = None
        self.steps = StepCounts()
        self.torch_device = torch_device
        self.device = torch_device.type
        self.weight_dtype, self.kv_dtype, self.lora_dtype = weight_dtype, kv_dtype, lora_dtype
        self.form = StorageForm(
            weights=str(weight_dtype).removeprefix("torch."),
            weight_bits=8.0 * weight_dtype.itemsize,
            table_bits=8.0 * weight_dtype.itemsize,
            kv_item_bytes=kv_dtype.itemsize,
            kv_lanes=1,
            lora_item_bytes=lora_dtype.itemsize,
            lora_half="float16" if lora_dtype is torch.float16 else "bfloat16",
        )
        weights, rows, adapters = PlainWeights(weight_dtype, torch_device), PlainRows(), PlainAdapters()
        experts, cache = PlainExperts(self.linear), PlainCache(kv_dtype, torch_device)
        self.pack = self.pack_table = weights.pack
        self.pack_groups = weights.pack_groups
        self.norm, self.add_norm, self.norm_heads = rows.norm, rows.add_norm, rows.norm_heads
        self.add_bias, self.take_rows, self.gated_silu = rows.add_bias, rows.take_rows, rows.gated_silu
        self.mask_logits = mask_logits
        self.new_kv, self.rotate_and_store = cache.new_kv, cache.rotate_and_store
        self.score_experts, self.route, self.expert_linear = experts.score_experts, experts.route, experts.expert_linear
        self.send_to_experts, self.gather_from_experts = experts.send_to_experts, experts.gather_from_experts
        self.prepare_lora, self.add_lora = adapters.prepare_lora, adapters.add_lora
        self.add_expert_lora = adapters.add_expert_lora
        self.adapt_embedding, self.adapt_norm = adapters.adapt_embedding, adapters.adapt_norm
        self.keep_hidden, self.adapt_logits = adapters.keep_hidden, adapters.adapt_logits

    @abstractmethod
    def linear(self, x: Tensor, weight: Packed) -> Tensor: ...

    @abstractmethod
    def logits(self, x: Tensor, head: Packed) -> Tensor: ...

    @abstractmethod
    def embed(self, token_ids: Tensor, table: Packed) -> Tensor: ...

    @abstractmethod
    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor: ...

    def with_ranks(self, ranks: Collectives | None) -> Self:
        """Return the same back end, whose collectives are those of `ranks`; None: of a single rank."""
        found = copy.copy(self)
        found._ranks = ranks
        return found

    def sum_over_ranks(self, y: Tensor) -> None:
        if self._ranks is not None:
            sum_over(self._ranks, y)

    def join_vocabulary(self, logits: Tensor, vocab: int) -> Tensor:
        if self._ranks is None:
            return logits
        joined = join_columns(self._ranks, logits, vocab, vocab)
        return logits.new_zeros(len(logits), vocab) if joined is None else joined

    def place(self, constant: Tensor) -> Tensor:
        return constant.to(self.torch_device, copy=self.own_memory_bytes is not None)

    def copies(self) -> Copies:
        return ImmediateCopies(self.place)

    def start_profile(self) -> Profile | None:
        return None

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        return sample_tokens(logits, rules)

    def score(self, logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenScore]:
        return score_tokens(logits, tokens, num_alternatives)
