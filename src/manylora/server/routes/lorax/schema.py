"""Reads a LoRAX-style request: every parameter, its bounds and its exact message."""

import dataclasses
from dataclasses import dataclass

from manylora.config.groups.server import ServerConfig
from manylora.engine.request import SamplingParams
from manylora.errors import InvalidParameter
from manylora.server.generation.adapter_fields import AdapterFields, read_adapter_fields
from manylora.server.generation.order import StopRules
from manylora.server.http.json_fields import Fields
from manylora.server.http.known_fields import check_names, not_built
from manylora.server.http.request_fields import NATIVE_BODY, NATIVE_PARAMETERS
from manylora.server.routes.sampling_fields import (
    MAX_ALTERNATIVES,
    filters,
    positive,
    refuse_response_format,
    stop_rules,
    temperature,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOrder:
    """What a caller of the LoRAX-style routes asked for, checked.

    seed           None: one is drawn for each sequence
    is_sampled     whether the seed means anything; greedy replies say `seed: null`
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


def read_native(body: Fields, settings: ServerConfig, *, max_input: int, is_stream: bool) -> NativeOrder:
    """Raises `InvalidParameter` with the message clients of LoRAX know."""
    check_names(body, NATIVE_BODY)
    inputs = body.get("inputs")
    if not isinstance(inputs, str):
        body.string("inputs")
        raise InvalidParameter("`inputs` is required", parameter="inputs")
    if not inputs:
        raise InvalidParameter("`inputs` cannot be empty", parameter="inputs")
    fields = body.child("parameters") or Fields({})
    _refuse(fields, is_stream=is_stream)
    best_of = _best_of(fields, settings.max_best_of, is_stream=is_stream)
    is_sampled, sampling = _sampling(fields, is_stream=is_stream, best_of=best_of)
    budget, truncate = fields.unsigned("max_new_tokens"), fields.unsigned("truncate")
    positive("max_new_tokens", budget)
    if truncate is not None and not 1 <= truncate <= max_input:
        raise InvalidParameter(
            f"`truncate` must be strictly positive and less than {max_input}. Given: {truncate}", parameter="truncate"
        )
    return NativeOrder(
        inputs=inputs,
        adapter=read_adapter_fields(fields),
        sampling=sampling,
        seed=fields.unsigned("seed"),
        is_sampled=is_sampled,
        max_new_tokens=budget,
        best_of=best_of,
        stop=_stop(fields, settings.max_stop_sequences),
        return_full_text=fields.boolean("return_full_text"),
        details=fields.boolean("details") or (fields.get("return_k_alternatives") is not None and not is_stream),
        truncate=truncate,
        apply_chat_template=fields.boolean("apply_chat_template"),
        is_stream=is_stream,
    )


def _stop(fields: Fields, most: int) -> StopRules:
    rules = stop_rules(fields, most)
    if rules.strings and rules.keeps_stop is False:
        raise InvalidParameter(
            "`include_stop_str_in_output`: a stop string stays in `generated_text` on this route; "
            "POST /v1/completions removes it",
            parameter="include_stop_str_in_output",
        )
    return rules


def _refuse(fields: Fields, *, is_stream: bool) -> None:
    check_names(fields, NATIVE_PARAMETERS, "parameters")
    refuse_response_format(fields)
    if fields.boolean("watermark"):
        raise InvalidParameter("`watermark` is not supported by this server", parameter="watermark")
    if fields.boolean("decoder_input_details"):
        if is_stream:
            raise InvalidParameter(
                "`decoder_input_details` == true is not supported when streaming tokens",
                parameter="decoder_input_details",
            )
        raise not_built("decoder_input_details")


def _best_of(fields: Fields, most: int, *, is_stream: bool) -> int:
    best_of = fields.integer("best_of")
    if best_of is None or best_of == 1:
        return 1
    if is_stream:
        raise InvalidParameter("`best_of` != 1 is not supported when streaming tokens", parameter="best_of")
    if most == 1:
        raise InvalidParameter("`best_of` != 1 is not allowed for this endpoint", parameter="best_of")
    if not 0 < best_of <= most:
        raise InvalidParameter(f"`best_of` must be > 0 and <= {most}. Given: {best_of}", parameter="best_of")
    asks = (fields.get(name) is not None for name in ("temperature", "top_k", "top_p", "typical_p"))
    if not (fields.boolean("do_sample") or any(asks)):
        raise InvalidParameter("you must use sampling when `best_of` is > 1", parameter="best_of")
    if fields.get("seed") is not None:
        raise InvalidParameter("`seed` must not be set when `best_of` > 1", parameter="seed")
    return best_of


def _sampling(fields: Fields, *, is_stream: bool, best_of: int) -> tuple[bool, SamplingParams]:
    """LoRAX's rule of when to sample: asked for, or any setting that means nothing without it."""
    heat, sampling = temperature(fields), filters(fields)
    alternatives = fields.integer("return_k_alternatives")
    positive("return_k_alternatives", alternatives)
    if alternatives is not None and alternatives > MAX_ALTERNATIVES:
        raise InvalidParameter(
            f"`return_k_alternatives` must be <= {MAX_ALTERNATIVES}. Given: {alternatives}",
            parameter="return_k_alternatives",
        )
    is_filtered = sampling.top_k is not None or sampling.top_p < 1 or sampling.typical_p is not None
    is_sampled = heat != 0 and (fields.boolean("do_sample") or heat not in (None, 1.0) or is_filtered)
    wants_logprobs = is_stream or best_of > 1 or fields.boolean("details") or alternatives is not None
    return is_sampled, dataclasses.replace(
        sampling,
        temperature=(1.0 if heat is None else heat) if is_sampled else 0.0,
        num_logprobs=(alternatives or 0) if wants_logprobs else None,
    )
