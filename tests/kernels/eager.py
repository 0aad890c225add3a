"""The native kernels operation by operation: each call is a graph of one operation, run on tensors."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.capture import Buffer, CapturedGraph, GraphRecorder
from manylora.kernels.cpu.kv import CpuKv
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import WeightFormat
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import AttentionBatch, KvCache, StepInput
from manylora.kernels.operation import Operation
from manylora.kernels.table_of_operations import Operations, RowIndices, Rows, TokenIds

NOTHING = torch.empty(0)
NO_ATTENTION = AttentionBatch(NOTHING, NOTHING, NOTHING, NOTHING)


class EagerKernels(Kernels, Operations[Tensor], Protocol):
    """A back end whose operations can be called one by one."""


def eager(
    native: NativeLibrary, weights: WeightFormat | None = None, *, lora_dtype: torch.dtype = torch.bfloat16
) -> EagerKernels:
    return cast(EagerKernels, _EagerCpu(native, weights, lora_dtype=lora_dtype))  # its operations are made on demand


class _EagerCpu(CpuKernels):
    def __getattr__(self, name: str) -> Callable[..., Tensor | None]:
        for operation in self.native.operations:
            if operation.name == name:
                return partial(self._call, operation)
        raise AttributeError(name)

    def _call(self, operation: Operation, *args: Any, **kwargs: Any) -> Tensor | None:
        arguments = operation.bind(*args, **kwargs)
        kinds = {kind: name for name, kind in operation.parameters.items() if kind is not Rows}
        names = [name for name, kind in operation.parameters.items() if kind is Rows]
        if operation.name == "adapt_logits":  # the operation `logits` makes them as wide as the step's adapters need
            missing = max(0, arguments["lora"].vocabulary - arguments["logits"].shape[1])
            wide = torch.full((len(arguments["logits"]), missing), float("-inf"))
            arguments["logits"] = torch.cat([arguments["logits"], wide], 1)
        tensors: dict[str, Tensor] = {name: arguments[name] for name in names}
        rows = len(tensors[names[0]]) if names else len(arguments[kinds[TokenIds]])
        step = _step(operation, {kind: arguments[name] for kind, name in kinds.items()}, rows)
        kv = arguments[kinds[KvCache]] if KvCache in kinds else self._no_kv()
        buffers: dict[str, Buffer] = {}
        results: list[Buffer | None] = []

        def forward(ops: GraphRecorder, _: StepInput, kv: KvCache) -> Buffer:
            for name, tensor in tensors.items():
                buffers[name] = ops.buffer(tensor.shape[1], copies=len(tensor) // max(rows, 1))
            results.append(getattr(ops, operation.name)(**{**arguments, **buffers}))
            return results[0] or buffers[names[0]]

        is_bf16 = self.lora_dtype is torch.bfloat16
        graph = CapturedGraph(self.native, cast(Any, forward), kv, is_bf16=is_bf16)  # recorded here and nowhere else
        scratch = graph.scratch(rows).fill_(float("nan"))
        for name, tensor in tensors.items():
            _view(scratch, buffers[name], rows, len(tensor)).copy_(tensor)
        logits = graph(step, cast(CpuKv, kv), None)
        for name, tensor in tensors.items():
            tensor.copy_(_view(scratch, buffers[name], rows, len(tensor)))
        result = results[0]
        if operation.result.changed is not None:
            return tensors[operation.result.changed]
        if result is None or operation.result.outlive:
            return logits if result is not None else None
        return _view(scratch, result, rows, len(step.logit_rows) if result.is_sampled else rows * result.copies).clone()

    def _no_kv(self) -> KvCache:
        return self.new_kv(layers=1, num_blocks=1, block_size=1, kv_heads=1, head_dim=8)


def _step(operation: Operation, parts: dict[object, Any], rows: int) -> StepInput:
    """The step that holds the parts which an operation reads."""
    if StepInput in parts:
        return cast(StepInput, parts[StepInput])
    sampled = torch.arange(rows) if operation.result.outlive else torch.empty(0, dtype=torch.int64)
    return StepInput(
        token_ids=parts.get(TokenIds, torch.zeros(rows, dtype=torch.int64)),
        logit_rows=parts.get(RowIndices, sampled),
        attention=parts.get(AttentionBatch, NO_ATTENTION),
        lora=dataclasses.replace(parts.get(LoraBatch, LoraBatch(())), vocabulary=0),
    )


def _view(scratch: Tensor, buffer: Buffer, rows: int, count: int) -> Tensor:
    first = buffer.column * rows
    return scratch[first : first + count * buffer.width].view(count, buffer.width)
