"""The translation of bodies of OpenAI's routes into orders and into the options of replies."""

import dataclasses
from dataclasses import dataclass

from manylora.config.groups.server import ServerConfig
from manylora.server.generation.order import ChatPrompt, Order, PromptInput, TextPrompt, TokenPrompt
from manylora.server.generation.text import ReplyForm, TokenReport
from manylora.server.routes.order_fields import adapter_fields, sampling_params, stop_rules
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.grammars import grammar_of
from manylora.server.schemas.openai.chat import ChatBody
from manylora.server.schemas.openai.completions import CompletionBody
from manylora.server.tools.tool import ToolSet

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIOptions:
    """The options of a reply from the request's body.

    n              choices for each prompt
    best_of        generated sequences of each prompt; the n with the best mean log-probability are choices
    has_logprobs   whether choices list their tokens with log-probabilities
    include_usage  whether a stream ends with the usage
    echo           whether the prompt stands before the text
    service_tier   the tier in the reply; None: the request names none
    """

    n: int
    best_of: int
    has_logprobs: bool
    include_usage: bool
    echo: bool = False
    service_tier: str | None = None


def read_completion(body: bytes, settings: ServerConfig) -> tuple[Order, OpenAIOptions]:
    """Read the body of POST /v1/completions. Raises `InvalidJson`, `InvalidParameter`."""
    read = read_body(body, CompletionBody, Bounds(settings=settings))
    options = OpenAIOptions(
        n=read.n,
        best_of=read.best_of or read.n,
        has_logprobs=read.logprobs is not None,
        include_usage=_includes_usage(read),
        echo=read.echo,
    )
    prompts = tuple(
        TextPrompt(prompt, read.add_special_tokens) if isinstance(prompt, str) else TokenPrompt(prompt)
        for prompt in read.prompt
    )
    budget = DEFAULT_COMPLETION_TOKENS if read.max_tokens is None else read.max_tokens
    order = _order(read, options, prompts, budget, read.logprobs, budget_field="max_tokens")
    return dataclasses.replace(order, prompt_logprobs=read.logprobs if read.echo else None), options


def _report(options: OpenAIOptions) -> TokenReport:
    """Return the tokens that a choice lists. Callers that score a prompt leave out the last one, whatever it is."""
    if not options.has_logprobs:
        return TokenReport.NONE
    return TokenReport.TO_END if options.echo else TokenReport.IN_TEXT


def read_chat(body: bytes, settings: ServerConfig) -> tuple[Order, OpenAIOptions]:
    """Read the body of POST /v1/chat/completions. Raises `InvalidJson`, `InvalidParameter`."""
    read = read_body(body, ChatBody, Bounds(settings=settings))
    options = OpenAIOptions(
        n=read.n,
        best_of=read.n,
        has_logprobs=read.logprobs,
        include_usage=_includes_usage(read),
        service_tier=None if read.service_tier is None else "default",
    )
    prompt = ChatPrompt(
        messages=read.messages,
        add_generation_prompt=read.add_generation_prompt,
        continues_last=read.continue_final_message,
        tools=_tools(read),
    )
    budget = read.max_tokens if read.max_completion_tokens is None else read.max_completion_tokens
    logprobs = (read.top_logprobs or 0) if read.logprobs else None
    return _order(read, options, (prompt,), budget, logprobs, budget_field="max_completion_tokens"), options


def _tools(read: ChatBody) -> ToolSet | None:
    """Return the tools that the reply may call; None: it may call none."""
    is_older = bool(read.functions)
    tools, choice = (read.functions, read.function_call) if is_older else (read.tools, read.tool_choice)
    if not tools or read.tool_choice.is_none or read.function_call.is_none:
        return None
    callable_ = [tool for tool in tools if choice.names is None or tool.name in choice.names]
    return ToolSet(
        shown=tools,
        tools=tuple(callable_),
        is_required=choice.is_required,
        is_parallel=read.parallel_tool_calls and not is_older,
        is_older=is_older,
    )


def _includes_usage(read: CompletionBody | ChatBody) -> bool:
    return read.stream_options is not None and read.stream_options.include_usage


def _order(
    read: CompletionBody | ChatBody,
    options: OpenAIOptions,
    prompts: tuple[PromptInput, ...],
    budget: int | None,
    logprobs: int | None,
    *,
    budget_field: str,
) -> Order:
    """Return the order of a body. `adapter_id` wins over `model`; a budget by default is cut to the window."""
    adapter = adapter_fields(read)
    is_adapter_named = bool(adapter.adapter_id) or adapter.names_several
    is_default_budget = isinstance(read, CompletionBody) and read.max_tokens is None
    ranks = options.best_of > options.n  # by log-probabilities, also if the reply has none
    return Order(
        model=read.model,
        adapter_name=adapter.adapter_id if is_adapter_named else read.model,
        adapter=adapter,
        adapter_field="adapter_id" if is_adapter_named else "model",
        prompts=prompts,
        num_sequences=options.best_of,
        sampling=sampling_params(
            read,
            temperature=1.0 if read.temperature is None else read.temperature,
            num_logprobs=0 if logprobs is None and ranks else logprobs,
            logit_bias=read.logit_bias,
        ),
        seed=read.seed,
        grammar=grammar_of(read),
        bad_words=read.bad_words,
        stop=stop_rules(read),
        max_new_tokens=budget,
        is_clamped=is_default_budget,
        is_stream=read.stream,
        form=ReplyForm(
            cuts_stops=True,
            report=_report(options),
            keeps_text=not read.stream,
            keeps_tokens=not read.stream,
        ),
        truncate=read.truncate_prompt_tokens,
        truncate_budget=None if is_default_budget else budget,
        prompt_field="prompt" if isinstance(read, CompletionBody) else "messages",
        budget_field=budget_field,
        truncate_field="truncate_prompt_tokens",
    )
