"""The CPU back end: the native C++ kernels, with the linear layers by one of three interchangeable operators."""

import ctypes
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.cpu.capture import CapturedGraph, GraphRecorder, NativeProfile, NativeSegments
from manylora.kernels.cpu.kv import CpuKv, KvLayout
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import LinearOperator, NativeLinear
from manylora.kernels.interface import AttentionBatch, Forward, KvCache, LoraBatch, LoraSegment, RopeTable, StepInput
from manylora.kernels.projections import LoraTarget
from manylora.kernels.sampling import RULE, Rules, draw_tokens

MAX_KNOWN_TARGETS = 64  # a model has a handful; the bound only stops a caller who makes a new tuple for each call


class CpuKernels:
    """`Kernels` on a CPU: float32 activations, bfloat16 weights, keys, values and adapters.

    Thread: the methods are called from one thread; the work is spread over the library's own pool.
    """

    device = "cpu"
    owns_threads = True
    is_row_independent = True
    activation_dtype = torch.float32
    kv_dtype = torch.bfloat16

    def __init__(
        self,
        native: NativeLibrary,
        linear_operator: LinearOperator | None = None,
        *,
        lora_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        assert lora_dtype in (torch.bfloat16, torch.float32)
        operator = linear_operator or NativeLinear(native)
        self.native = native
        self.name = operator.name
        self.weight_dtype = operator.weight_dtype
        self.scale_bytes = operator.scale_bytes
        self.lora_dtype = lora_dtype
        self.pack = operator.pack
        self.linear = operator.linear
        self.logits = operator.linear
        self.embed = operator.embed
        self._functions = native.functions
        self._pool = native.pool
        # Looked up once: a step calls each of these hundreds of times.
        self._norm = native.functions.ml_norm
        self._add_norm = native.functions.ml_add_norm
        self._gated_silu = native.functions.ml_gated_silu
        self._rotate_and_store = native.functions.ml_rotate_and_store
        self._attend = native.functions.ml_attend
        self._draw = native.functions.ml_draw
        self._products = operator.products
        self._profile: NativeProfile | None = None
        self._targets: dict[int, tuple[tuple[LoraTarget, ...], ctypes.Array[ctypes.c_int64]]] = {}

    def compile(self, forward: Forward) -> Callable[[StepInput, KvCache], Tensor]:
        """Return a function that captures `forward` at its first call and then replays it in one native call a step."""
        program: CapturedGraph | None = None

        def run(step: StepInput, kv: KvCache) -> Tensor:
            nonlocal program
            cache = cast(CpuKv, kv)  # `new_kv` made it
            if program is None:
                recorder = GraphRecorder(self._products, cache.head_dim, self._native_targets)
                program = CapturedGraph(functools.partial(self._functions.ml_run, self._pool), recorder, forward, kv)
            return program(step, cache, is_bf16=self._is_bf16, profile=self._profile)

        return run

    def start_profile(self) -> NativeProfile:
        self._profile = NativeProfile()
        return self._profile

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        rows, width = x.shape
        y = torch.empty_like(x)
        self._norm(self._pool, x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps)
        return y

    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        assert residual.is_contiguous()  # it is written in place
        delta = delta.contiguous()
        rows, width = residual.shape
        y = torch.empty_like(residual)
        self._add_norm(
            self._pool, residual.data_ptr(), delta.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps
        )
        return y

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        rows, width = gate_up.shape
        y = torch.empty(rows, width // 2)
        self._gated_silu(self._pool, gate_up.data_ptr(), y.data_ptr(), rows, width // 2)
        return y

    def draw(self, logits: Tensor, rules: Rules) -> tuple[list[int], list[float]]:
        rows, vocab = logits.shape
        assert logits.dtype is torch.float32
        assert logits.is_contiguous()
        assert rules.dtype == RULE
        tokens, peaks = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float32)
        self._draw(
            self._pool,
            logits.data_ptr(),
            rows,
            vocab,
            rules.ctypes.data,
            tokens.ctypes.data,
            peaks.ctypes.data,
            None if self._profile is None else self._profile.draw_address,
        )
        found = tokens.tolist()
        if rules["typical_p"].any():  # rare, and a ranking of its own: left to the specification
            for index in np.flatnonzero(rules["typical_p"]).tolist():
                found[index] = draw_tokens(logits[index : index + 1], rules[index : index + 1])[0][0]
        return found, peaks.tolist()

    def new_kv(self, *, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KvCache:
        assert head_dim % 8 == 0
        layout = KvLayout(0, 0, num_blocks, block_size, kv_heads, head_dim)
        address = ctypes.addressof(layout)
        # Zeros cost nothing until they are written, and make an unwritten lane a number.
        keys = torch.zeros(layers * num_blocks * self._functions.ml_key_elements(address), dtype=self.kv_dtype)
        values = torch.zeros(layers * num_blocks * self._functions.ml_value_elements(address), dtype=self.kv_dtype)
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

    def kv_block_bytes(self, *, layers: int, block_size: int, kv_heads: int, head_dim: int) -> int:
        layout = KvLayout(0, 0, 1, block_size, kv_heads, head_dim)
        address = ctypes.addressof(layout)
        elements: int = self._functions.ml_key_elements(address) + self._functions.ml_value_elements(address)
        return 2 * layers * elements

    def rotate_and_store(
        self, qkv: Tensor, rope: RopeTable, kv: KvCache, layer: int, heads: int, batch: AttentionBatch
    ) -> Tensor:
        cache = cast(CpuKv, kv)  # `new_kv` made it
        qkv = qkv.contiguous()
        rows = qkv.shape[0]
        q = torch.empty(rows, heads * cache.layout.head_dim)
        self._rotate_and_store(
            self._pool,
            cache.address,
            layer,
            qkv.data_ptr(),
            q.data_ptr(),
            rows,
            heads,
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
        )
        return q

    def attend(self, q: Tensor, kv: KvCache, layer: int, window: int | None, batch: AttentionBatch) -> Tensor:
        cache = cast(CpuKv, kv)  # `new_kv` made it
        q = q.contiguous()
        rows, width = q.shape
        out = torch.empty_like(q)
        self._attend(
            self._pool,
            cache.address,
            layer,
            window or 0,
            q.data_ptr(),
            out.data_ptr(),
            rows,
            width // cache.layout.head_dim,
            batch.positions.data_ptr(),
            batch.row_sequence.data_ptr(),
            batch.block_tables.data_ptr(),
            batch.block_tables.shape[1],
        )
        return out

    def prepare_lora(
        self, segments: tuple[LoraSegment, ...], sampled: tuple[LoraSegment, ...] = (), vocabulary: int = 0
    ) -> LoraBatch:
        assert all(segment.adapter.image.dtype is self.lora_dtype for segment in segments)
        lora = LoraBatch(segments, sampled, vocabulary)
        return dataclasses.replace(lora, native=NativeSegments(lora)) if segments else lora

    def add_lora(self, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, targets: tuple[LoraTarget, ...]) -> None:
        if not lora.segments:
            return
        assert y.stride(1) == 1
        assert x.stride(1) == 1
        self._functions.ml_add_lora(
            self._pool,
            y.data_ptr(),
            y.stride(0),
            x.data_ptr(),
            x.stride(0),
            x.shape[1],
            _native(lora).address,
            len(lora.segments),
            self._native_targets(targets),
            len(targets),
            layer,
            self._is_bf16,
        )

    def adapt_embedding(self, y: Tensor, step: StepInput) -> None:
        if step.lora.has_extras:
            assert y.is_contiguous()
            self._functions.ml_adapt_embedding(
                self._pool,
                step.row_ids.data_ptr(),
                y.data_ptr(),
                y.shape[1],
                _native(step.lora).address,
                len(step.lora.segments),
                self._is_bf16,
            )

    def adapt_norm(
        self, y: Tensor, x: Tensor, lora: LoraBatch, index: int, eps: float, *, is_sampled: bool = False
    ) -> None:
        if not lora.has_extras:
            return
        assert y.is_contiguous()
        assert x.is_contiguous()
        native = _native(lora)
        self._functions.ml_adapt_norm(
            self._pool,
            x.data_ptr(),
            y.data_ptr(),
            x.shape[1],
            eps,
            index,
            native.sampled_address if is_sampled else native.address,
            len(lora.sampled if is_sampled else lora.segments),
            self._is_bf16,
        )

    def adapt_logits(self, logits: Tensor, x: Tensor, lora: LoraBatch) -> Tensor:
        if not lora.sampled:
            return logits
        if lora.vocabulary > logits.shape[1]:
            logits = F.pad(logits, (0, lora.vocabulary - logits.shape[1]), value=-math.inf)
        x = x.contiguous()
        self._functions.ml_adapt_logits(
            self._pool,
            logits.data_ptr(),
            logits.stride(0),
            x.data_ptr(),
            x.shape[1],
            _native(lora).sampled_address,
            len(lora.sampled),
            self._is_bf16,
        )
        return logits

    @property
    def _is_bf16(self) -> bool:
        return self.lora_dtype is torch.bfloat16

    def _native_targets(self, targets: tuple[LoraTarget, ...]) -> "ctypes.Array[ctypes.c_int64]":
        """(targets, 3) int64. Known by identity, and kept alive so that an identity is never used twice."""
        known = self._targets.get(id(targets))
        if known is None:
            if len(self._targets) >= MAX_KNOWN_TARGETS:
                self._targets.clear()
            numbers = [number for t in targets for number in (int(t.projection), t.column, t.out)]
            known = (targets, (ctypes.c_int64 * len(numbers))(*numbers))
            self._targets[id(targets)] = known
        return known[1]


def _native(lora: LoraBatch) -> NativeSegments:
    return cast(NativeSegments, lora.native)  # `prepare_lora` made it
