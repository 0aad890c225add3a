"""Orders of requests that generate nothing, and the results in their replies."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from manylora.engine.events import PooledValues
from manylora.engine.pooling import Pooling
from manylora.engine.request import SamplingParams
from manylora.errors import EngineFault
from manylora.server.generation.order import Order, PromptInput, StopRules
from manylora.server.generation.text import ReplyForm, TokenReport
from manylora.server.routes.order_fields import NamesAdapter, adapter_fields

_NO_TEXT = ReplyForm(cuts_stops=False, report=TokenReport.NONE, keeps_text=False, keeps_tokens=False)


def pooled_order(
    prompts: tuple[PromptInput, ...],
    naming: NamesAdapter,
    pooling: Pooling,
    *,
    prompt_field: str,
    model: str | None = None,
    dimensions: int | None = None,
    truncate: int | None = None,
    most_tokens: int | None = None,
) -> Order:
    """Return the order of a body. The adapter's own fields win over `model`, which may name it, too."""
    adapter = adapter_fields(naming)
    is_adapter_named = bool(adapter.adapter_id) or adapter.names_several
    return Order(
        model=model,
        adapter_name=adapter.adapter_id if is_adapter_named else model,
        adapter=adapter,
        adapter_field="adapter_id" if is_adapter_named or model is None else "model",
        prompts=prompts,
        num_sequences=1,
        sampling=SamplingParams(temperature=0.0),
        seed=0,
        stop=StopRules(),
        max_new_tokens=0,
        is_clamped=False,
        is_stream=False,
        form=_NO_TEXT,
        pooling=pooling,
        dimensions=dimensions,
        truncate=truncate,
        most_prompt_tokens=most_tokens,
        prompt_field=prompt_field,
        truncate_field="truncate_prompt_tokens",
    )


@contextmanager
def faults_as(kind: type[EngineFault]) -> Iterator[None]:
    """Turn a fault of the engine into one that names the work, as LoRAX's clients tell them apart."""
    try:
        yield
    except EngineFault as error:
        raise kind(error.message) from error


def shortened(pooled: PooledValues, dimensions: int | None) -> PooledValues:
    """Return the first `dimensions` numbers of an embedding with the length 1; with None or all of them, the same bits.

    Numbers that are all zero stay so.
    """
    if dimensions is None or dimensions >= pooled.columns:
        return pooled
    kept = np.frombuffer(pooled.data, dtype="<f4")[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(kept))
    return PooledValues(data=(kept / length if length else kept).astype("<f4").tobytes(), columns=dimensions)


def rows_of(pooled: PooledValues) -> list[list[float]]:
    """Return a result as lists of numbers, row by row."""
    rows: list[list[float]] = np.frombuffer(pooled.data, dtype="<f4").reshape(-1, pooled.columns).tolist()
    return rows
