"""Translates the fields that both dialects share, of sampling and of ending, into the engine's terms."""

from manylora.engine.request import SamplingParams
from manylora.server.generation.order import StopRules
from manylora.server.schemas.lorax import GenerateParameters
from manylora.server.schemas.openai import ChatBody, CompletionBody

Fields = GenerateParameters | CompletionBody | ChatBody


def sampling_params(
    fields: Fields,
    *,
    temperature: float,
    num_logprobs: int | None,
    logit_bias: tuple[tuple[int, float], ...] = (),
) -> SamplingParams:
    """Return the engine's parameters. A `top_p` of 0, which OpenAI documents, keeps the likeliest token alone."""
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
        num_logprobs=num_logprobs,
    )


def stop_rules(fields: Fields) -> StopRules:
    return StopRules(
        strings=fields.stop,
        token_ids=fields.stop_token_ids,
        ignore_eos=bool(fields.ignore_eos_token or fields.ignore_eos),
        skip_special_tokens=fields.skip_special_tokens,
        keeps_stop=fields.include_stop_str_in_output,
    )
