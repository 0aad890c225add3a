"""The conversion of fields that both dialects share into the terms of an order: adapter, sampling, stop conditions."""

from typing import Protocol

from manylora.engine.request import SamplingParams
from manylora.server.generation.order import StopRules
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.schemas.adapters import MergedAdapters, WeightedAdapter
from manylora.server.schemas.lorax.bodies import GenerateParameters
from manylora.server.schemas.openai.chat import ChatBody
from manylora.server.schemas.openai.completions import CompletionBody

Fields = GenerateParameters | CompletionBody | ChatBody


class NamesAdapter(Protocol):
    """The model of a body with the fields that name an adapter."""

    @property
    def adapter_id(self) -> str | None: ...
    @property
    def adapter_source(self) -> str | None: ...
    @property
    def api_token(self) -> str | None: ...
    @property
    def merged_adapters(self) -> MergedAdapters | None: ...
    @property
    def adapters(self) -> tuple[WeightedAdapter, ...]: ...


def adapter_fields(body: NamesAdapter) -> AdapterFields:
    """Return the fields of a body that name its adapter."""
    source, token, merged = body.adapter_source or None, body.api_token or "", body.merged_adapters
    if body.adapters:
        mixed = tuple((each.id, each.weight) for each in body.adapters)
        return AdapterFields(source=source, token=token, mixed=mixed, names_several=bool(mixed))
    if merged is None:
        return AdapterFields(adapter_id=body.adapter_id, source=source, token=token)
    recipe = merged.recipe()
    return AdapterFields(source=source, token=token, merged_ids=merged.ids, recipe=recipe, names_several=True)


def sampling_params(
    fields: Fields,
    *,
    temperature: float,
    num_logprobs: int | None,
    logit_bias: tuple[tuple[int, float], ...] = (),
) -> SamplingParams:
    """Return the engine's parameters. A `top_p` of 0, which OpenAI documents, keeps only the likeliest token."""
    top_k, top_p = (1, None) if fields.top_p == 0 else (fields.top_k, fields.top_p)
    return SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=1.0 if top_p is None else top_p,
        typical_p=fields.typical_p,
        min_p=fields.min_p or 0.0,
        repetition_penalty=1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
        frequency_penalty=fields.frequency_penalty,
        presence_penalty=fields.presence_penalty,
        logit_bias=logit_bias,
        allowed_token_ids=fields.allowed_token_ids,
        num_logprobs=num_logprobs,
    )


def stop_rules(fields: Fields) -> StopRules:
    """Return the conditions that end the text."""
    return StopRules(
        strings=fields.stop,
        token_ids=fields.stop_token_ids,
        min_tokens=fields.min_tokens or fields.min_new_tokens or 0,
        ignore_eos=bool(fields.ignore_eos_token or fields.ignore_eos),
        skip_special_tokens=fields.skip_special_tokens,
        keeps_stop=fields.include_stop_str_in_output,
    )
