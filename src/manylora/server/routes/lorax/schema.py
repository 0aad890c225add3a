"""Translates a body of LoRAX's routes into the terms of the engine."""

from dataclasses import dataclass

from manylora.config.groups.server import ServerConfig
from manylora.engine.request import SamplingParams
from manylora.server.generation.adapter_fields import AdapterFields, adapter_fields
from manylora.server.generation.order import StopRules
from manylora.server.routes.sampling_fields import sampling_params, stop_rules
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.lorax import GenerateBody, GenerateParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOrder:
    """A checked request of the LoRAX-style routes.

    seed           None: one is drawn for each sequence
    is_sampled     whether the seed means anything; greedy replies have `seed: null`
    max_new_tokens None: the rest of the window
    truncate       None: the prompt is not cut
    """

    inputs: str
    adapter: AdapterFields
    sampling: SamplingParams
    seed: int | None
    is_sampled: bool
    max_new_tokens: int | None
    best_of: int
    stop: StopRules
    return_full_text: bool
    details: bool
    truncate: int | None
    apply_chat_template: bool
    is_stream: bool


def read_native(body: bytes, settings: ServerConfig, *, max_input: int, is_stream: bool | None) -> NativeOrder:
    """Read a body.

    Args:    max_input  tokens of the longest prompt
             is_stream  whether the route streams; None: the body decides
    Raises:  `InvalidJson`; `InvalidParameter` with the messages that clients of LoRAX know
    """
    read = read_body(body, GenerateBody, Bounds(settings=settings, max_input=max_input, is_stream=is_stream))
    fields, is_streamed = read.parameters, bool(read.stream)
    is_sampled, sampling = _sampling(fields, is_stream=is_streamed)
    return NativeOrder(
        inputs=read.inputs,
        adapter=adapter_fields(fields),
        sampling=sampling,
        seed=fields.seed,
        is_sampled=is_sampled,
        max_new_tokens=fields.max_new_tokens,
        best_of=fields.best_of,
        stop=stop_rules(fields),
        return_full_text=fields.return_full_text,
        details=fields.details or (fields.return_k_alternatives is not None and not is_streamed),
        truncate=fields.truncate,
        apply_chat_template=fields.apply_chat_template,
        is_stream=is_streamed,
    )


def _sampling(fields: GenerateParameters, *, is_stream: bool) -> tuple[bool, SamplingParams]:
    """Return whether to sample, and how. LoRAX samples if asked to, or for any setting that needs it."""
    alternatives, heat = fields.return_k_alternatives, fields.temperature
    is_filtered = fields.top_k is not None or (fields.top_p or 1.0) < 1 or fields.typical_p is not None
    is_sampled = heat != 0 and (fields.do_sample or heat not in (None, 1.0) or is_filtered)
    wants_logprobs = is_stream or fields.best_of > 1 or fields.details or alternatives is not None
    return is_sampled, sampling_params(
        fields,
        temperature=(1.0 if heat is None else heat) if is_sampled else 0.0,
        num_logprobs=(alternatives or 0) if wants_logprobs else None,
    )
