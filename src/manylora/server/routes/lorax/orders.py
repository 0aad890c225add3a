"""The translation of a body of LoRAX's routes into an order and into the options of its reply."""

from dataclasses import dataclass

from manylora.config.groups.server import ServerConfig
from manylora.engine.request import SamplingParams
from manylora.server.generation.order import ChatPrompt, Order, TextPrompt
from manylora.server.generation.text import ReplyForm, TokenReport
from manylora.server.routes.order_fields import adapter_fields, sampling_params, stop_rules
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.grammars import grammar_of
from manylora.server.schemas.lorax.bodies import GenerateBody, GenerateParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraxOptions:
    """The options of a reply from the request's body.

    prefix            text before the generated text: the prompt, or empty
    has_details       whether the reply has `details`
    has_seed          whether the reply has the seed; a greedy reply has `seed: null`
    has_alternatives  whether tokens have `alternative_tokens`
    has_several       whether `details` list the sequences beside the best one
    """

    prefix: str
    has_details: bool
    has_seed: bool
    has_alternatives: bool
    has_several: bool


def read_generate(
    body: bytes, settings: ServerConfig, *, max_input: int, is_stream: bool | None
) -> tuple[Order, LoraxOptions]:
    """Read a body.

    Args:    max_input  tokens of the longest prompt
             is_stream  whether the route streams; None: the body decides
    Raises:  `InvalidJson`, and `InvalidParameter` with LoRAX's messages
    """
    read = read_body(body, GenerateBody, Bounds(settings=settings, max_input=max_input, is_stream=is_stream))
    fields, is_streamed = read.parameters, bool(read.stream)
    is_sampled, sampling = _sampling(fields, is_stream=is_streamed)
    implies_details = fields.decoder_input_details or fields.return_k_alternatives is not None
    has_details = fields.details or (implies_details and not is_streamed)
    options = LoraxOptions(
        prefix=read.inputs if fields.return_full_text else "",
        has_details=has_details,
        has_seed=is_sampled,
        has_alternatives=bool(sampling.num_logprobs),
        has_several=fields.best_of > 1,
    )
    adapter = adapter_fields(fields)
    order = Order(
        model=None,
        adapter_name=adapter.adapter_id,
        adapter=adapter,
        prompts=(_chat(read.inputs) if fields.apply_chat_template else TextPrompt(read.inputs),),
        num_sequences=fields.best_of,
        sampling=sampling,
        seed=fields.seed,
        grammar=grammar_of(fields),
        bad_words=fields.bad_words,
        stop=stop_rules(fields),
        max_new_tokens=fields.max_new_tokens,
        is_clamped=settings.overlong_max_new_tokens == "clamp",
        is_stream=is_streamed,
        form=ReplyForm(
            cuts_stops=False,
            report=TokenReport.EVERY if is_streamed or has_details else TokenReport.NONE,
            keeps_text=True,  # a stream's last event has the whole text
            keeps_tokens=not is_streamed,
        ),
        truncate=fields.truncate,
        prompt_logprobs=0 if fields.decoder_input_details else None,
        prompt_field="inputs",
        budget_field="max_new_tokens",
    )
    return order, options


def _chat(inputs: str) -> ChatPrompt:
    return ChatPrompt(messages=({"role": "user", "content": inputs},), instead="leave `apply_chat_template` out")


def _sampling(fields: GenerateParameters, *, is_stream: bool) -> tuple[bool, SamplingParams]:
    """Return whether to sample, and the parameters. LoRAX samples for `do_sample` or any setting that needs it."""
    alternatives, heat = fields.return_k_alternatives, fields.temperature
    is_filtered = fields.top_k is not None or (fields.top_p or 1.0) < 1 or fields.typical_p is not None
    is_sampled = heat != 0 and (fields.do_sample or heat not in (None, 1.0) or is_filtered)
    wants_logprobs = is_stream or fields.best_of > 1 or fields.details or fields.decoder_input_details
    return is_sampled, sampling_params(
        fields,
        temperature=(1.0 if heat is None else heat) if is_sampled else 0.0,
        num_logprobs=(alternatives or 0) if wants_logprobs or alternatives is not None else None,
    )
