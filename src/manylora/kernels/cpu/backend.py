"""The CPU back end: the native C++ kernels, with weights in one of four packed forms."""

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from manylora.kernels.captures.limits import CaptureLimits, StepCounts
from manylora.kernels.collectives import Collectives
from manylora.kernels.cpu.capture import CapturedGraph, NativeProfile, NativeSegments
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.kv import CpuKv, untouched_zeros
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import NativeLinear, WeightFormat
from manylora.kernels.cpu.native.layouts import KvLayout
from manylora.kernels.interface import CompiledForward, Copies, Forward
from manylora.kernels.lora_batch import LoraBatch, LoraSegment
from manylora.kernels.operands import KvCache, StepInput
from manylora.kernels.plain.copies import ImmediateCopies
from manylora.kernels.sampling import (
    SAMPLING_RULE,
    RowNumbers,
    SamplingRules,
    TokenMasks,
    TokenScore,
    sample_tokens,
    score_tokens,
)


class CpuKernels:
    """`Kernels` on a CPU: float32 activations, bfloat16 weights, keys, values and adapters.

    Thread: one thread calls the methods; the library's own pool shares the work.
    """

    device = "cpu"
    own_memory_bytes: int | None = None
    owns_threads = True
    is_row_independent = True
    activation_dtype = torch.float32
    kv_dtype = torch.bfloat16

    def __init__(
        self,
        native: NativeLibrary,
        weight_format: WeightFormat | None = None,
        *,
        lora_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        assert lora_dtype in (torch.bfloat16, torch.float32)
        weights = weight_format or NativeLinear(native)
        self.native = native
        self.steps = StepCounts()
        self.name = weights.name
        self.weight_dtype = weights.weight_dtype
        self.form = dataclasses.replace(weights.form, lora_item_bytes=lora_dtype.itemsize)
        self.lora_dtype = lora_dtype
        self.pack = weights.pack
        self.pack_table = weights.pack_table
        self.pack_groups = Int4Linear(native).pack_groups
        self._kv_depth = 2 if weights.has_paired_kv else 1
        self._functions = native.functions
        self._profile: NativeProfile | None = None
        self._sampled = _SampledRows(torch.empty(0, 0), np.empty(0, dtype=SAMPLING_RULE))

    def place(self, constant: Tensor) -> Tensor:
        return constant

    def copies(self) -> Copies:
        return ImmediateCopies(self.place)

    def compile(
        self, forward: Forward, ranks: Collectives | None = None, limits: CaptureLimits | None = None
    ) -> CompiledForward:
        """Return a function that captures `forward` at its first call and then replays it in one native call a step.

        With `ranks` a step takes one native call between two collectives.
        """
        graph: CapturedGraph | None = None

        def run(step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
            nonlocal graph
            if graph is None:
                is_bf16 = self.lora_dtype is torch.bfloat16
                graph = CapturedGraph(self.native, forward, kv, is_bf16=is_bf16, ranks=ranks)
            return graph(step, cast(CpuKv, kv), self._profile, reuse)  # `new_kv` made it

        return run

    def start_profile(self) -> NativeProfile:
        self._profile = NativeProfile(self.native.operations)
        return self._profile

    def sample(self, logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
        sampled = self._sampled
        if sampled.logits is not logits or sampled.rules is not rules:
            assert logits.dtype is torch.float32
            assert logits.is_contiguous()
            assert rules.dtype == SAMPLING_RULE
            sampled = self._sampled = _SampledRows(logits, rules)
        rows = sampled.num_rows
        num_typical = self._functions.ml_sample(
            self.native.pool,
            sampled.logits_address,
            rows,
            sampled.vocab,
            sampled.rules_address,
            sampled.tokens_address,
            sampled.peaks_address,
            None if self._profile is None else self._profile.sampling_address,
        )
        tokens = sampled.tokens[:rows]
        if num_typical:  # rare, with a ranking of its own: the specification computes it
            for index in np.flatnonzero(rules["typical_p"]).tolist():
                tokens[index] = sample_tokens(logits[index : index + 1], rules[index : index + 1])[0][0]
        return tokens, sampled.peaks[:rows]

    def score(self, logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenScore]:
        return score_tokens(logits, tokens, num_alternatives)

    def mask_logits(self, logits: Tensor, rows: RowNumbers, masks: TokenMasks) -> None:
        assert logits.is_contiguous()
        assert masks.flags.c_contiguous
        assert rows.size == len(masks)
        self._functions.ml_mask_logits(
            self.native.pool,
            logits.data_ptr(),
            logits.shape[1],
            rows.ctypes.data,
            rows.size,
            masks.ctypes.data,
            masks.shape[1],
            None if self._profile is None else self._profile.sampling_address,
        )

    def new_kv(self, *, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KvCache:
        assert head_dim % 8 == 0
        layout = KvLayout(0, 0, num_blocks, block_size, kv_heads, head_dim, self._kv_depth)
        address = ctypes.addressof(layout)
        keys = untouched_zeros(layers * num_blocks * self._functions.ml_key_elements(address), self.kv_dtype)
        values = untouched_zeros(layers * num_blocks * self._functions.ml_value_elements(address), self.kv_dtype)
        layout.keys, layout.values = keys.data_ptr(), values.data_ptr()
        for part in (keys, values):
            self._functions.ml_advise_huge(part.data_ptr(), part.nbytes)
        return CpuKv(
            num_blocks,
            block_size,
            keys.nbytes + values.nbytes,
            layers,
            keys,
            values,
            layout,
            address,
            self._functions.ml_discard,
        )

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        assert all(segment.adapter.image.dtype is self.lora_dtype for segment in segments)
        lora = LoraBatch(segments, sampled, vocabulary)
        return dataclasses.replace(lora, native=NativeSegments(lora)) if segments else lora


class _SampledRows:
    """A draw's inputs with their addresses, and the memory in which native code leaves tokens and peaks.

    A batch that decodes has the same ones step after step; an array of numpy and a cold tensor take long to ask.
    """

    __slots__ = (
        *("logits", "logits_address", "num_rows", "peaks", "peaks_address", "rules", "rules_address", "tokens"),
        *("tokens_address", "vocab"),
    )

    def __init__(self, logits: Tensor, rules: SamplingRules) -> None:
        self.logits = logits
        self.rules = rules
        self.num_rows, self.vocab = logits.shape
        self.logits_address, self.rules_address = logits.data_ptr(), rules.ctypes.data
        self.tokens = (ctypes.c_int64 * self.num_rows)()
        self.peaks = (ctypes.c_float * self.num_rows)()
        self.tokens_address = ctypes.addressof(self.tokens)
        self.peaks_address = ctypes.addressof(self.peaks)
