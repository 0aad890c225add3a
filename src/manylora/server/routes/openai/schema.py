"""Translates bodies of OpenAI's routes into the terms of the engine."""

import dataclasses
from dataclasses import dataclass

from manylora.config.groups.server import ServerConfig
from manylora.engine.request import SamplingParams
from manylora.server.generation.adapter_fields import AdapterFields, adapter_fields
from manylora.server.generation.order import StopRules
from manylora.server.routes.sampling_fields import sampling_params, stop_rules
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.openai import ChatBody, CompletionBody, Message, Prompt

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIOrder:
    """What a caller of an OpenAI route asked for, checked; the prompt is beside it.

    model      as sent: it is the name in the reply and in "does not exist"
    seed       None: one is drawn for each sequence; else sequence i has seed + i
    best_of    sequences generated for each prompt; the n with the best mean log-probability are returned
    max_tokens None: the rest of the window
    logprobs   None: none; else the number of alternatives beside each token
    truncate   the prompt's last tokens that are kept; None: all; -1: as many as fit beside the budget
    has_bos    whether what leads the model's texts is put before a prompt that is text
    """

    model: str | None
    adapter: AdapterFields
    sampling: SamplingParams
    seed: int | None
    n: int
    best_of: int
    max_tokens: int | None
    is_default_budget: bool
    stop: StopRules
    logprobs: int | None
    is_stream: bool
    include_usage: bool
    truncate: int | None
    echo: bool = False
    has_bos: bool = True

    @property
    def ranked_sampling(self) -> SamplingParams:
        """What the engine is told: ranking needs log-probabilities even where none are shown."""
        if self.best_of == self.n or self.logprobs is not None:
            return self.sampling
        return dataclasses.replace(self.sampling, num_logprobs=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Chat's messages and how they become a prompt; `continues_last`: the last one is continued."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    continues_last: bool = False


def read_completion(body: bytes, settings: ServerConfig) -> tuple[OpenAIOrder, tuple[Prompt, ...]]:
    """Read the body of POST /v1/completions. Raises `InvalidJson`, `InvalidParameter`."""
    read = read_body(body, CompletionBody, Bounds(settings=settings))
    budget = DEFAULT_COMPLETION_TOKENS if read.max_tokens is None else read.max_tokens
    order = _order(read, max_tokens=budget, logprobs=read.logprobs, best_of=read.best_of or read.n)
    order = dataclasses.replace(
        order, is_default_budget=read.max_tokens is None, echo=read.echo, has_bos=read.add_special_tokens
    )
    return order, read.prompt


def read_chat(body: bytes, settings: ServerConfig) -> tuple[OpenAIOrder, Conversation]:
    """Read the body of POST /v1/chat/completions. Raises `InvalidJson`, `InvalidParameter`."""
    read = read_body(body, ChatBody, Bounds(settings=settings))
    budget = read.max_tokens if read.max_completion_tokens is None else read.max_completion_tokens
    logprobs = (read.top_logprobs or 0) if read.logprobs else None
    conversation = Conversation(
        messages=read.messages,
        add_generation_prompt=read.add_generation_prompt,
        continues_last=read.continue_final_message,
    )
    return _order(read, max_tokens=budget, logprobs=logprobs, best_of=read.n), conversation


def _order(
    read: CompletionBody | ChatBody, *, max_tokens: int | None, logprobs: int | None, best_of: int
) -> OpenAIOrder:
    sampling = sampling_params(
        read,
        temperature=1.0 if read.temperature is None else read.temperature,
        num_logprobs=logprobs,
        logit_bias=read.logit_bias,
    )
    return OpenAIOrder(
        model=read.model,
        adapter=adapter_fields(read),
        sampling=sampling,
        seed=read.seed,
        n=read.n,
        best_of=best_of,
        max_tokens=max_tokens,
        is_default_budget=False,
        stop=stop_rules(read),
        logprobs=logprobs,
        is_stream=read.stream,
        include_usage=read.stream_options is not None and read.stream_options.include_usage,
        truncate=read.truncate_prompt_tokens,
    )
