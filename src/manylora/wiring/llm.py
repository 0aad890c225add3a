"""A base model and its adapters in this process, without a server: `from manylora import LLM`."""

import asyncio
import gc
import math
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack, overload

from manylora.clock import SystemClock
from manylora.config.declaration import Setting
from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE
from manylora.config.settings import Config, load_config
from manylora.engine.pooling import Pooling
from manylora.engine.request import SamplingParams
from manylora.errors import ConfigInvalid, InvalidParameter
from manylora.ids import mint_request_id
from manylora.mixing import read_mix
from manylora.models.fetch.pull import pull
from manylora.models.text.grammar import GrammarSource
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.models import StartedBase, tokenizer_of
from manylora.server.generation.order import ChatPrompt, Message, Order, PromptInput, StopRules, TextPrompt
from manylora.server.generation.routing import open_models
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.generation.text import ReplyForm, TextToken, TokenReport
from manylora.server.http.context import RequestState
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.observability.metrics import Meters
from manylora.server.routes.lorax.entities import label_name, probabilities
from manylora.server.routes.pooled import rows_of
from manylora.wiring.bases import refuse_impossible_bases, server_bases
from manylora.wiring.engine import ReportLine, build_engine
from manylora.wiring.load_progress import is_passing

Result = TypeVar("Result")
Adapter = str | Mapping[str, float]
"""An adapter's name, or the names of several with their weights: their deltas are added in this order."""
MAX_TOKENS = 256
MAX_LOGPROBS = 20
MAX_ADAPTERS = 64
"""Largest number of adapters that apply to one prompt together."""
_INSTEAD = "give the prompt as one text, as `LLM.generate` and `manylora generate --raw` do"
_FORM = ReplyForm(cuts_stops=True, report=TokenReport.EVERY, keeps_text=False, keeps_tokens=False)


class GenerateOptions(TypedDict, total=False):
    """The options of a call.

    max_tokens  of each reply, cut to the rest of the window; None: the rest of the window; default 256
    sampling    default: greedy
    stop        strings that end a text and are no part of it
    grammar     the form of each reply, such as `json_grammar(schema)`; default: any text
    seed        of the first prompt's draws; prompt i has `seed + i`; None, the default: drawn
    """

    max_tokens: int | None
    sampling: SamplingParams | None
    stop: Sequence[str]
    grammar: GrammarSource | None
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOutput:
    """One generated text.

    adapter        its name, or the names of several, between commas; None is the base
    tokens         of the reply, each with its log-probability if `SamplingParams.num_logprobs` asks for it
    finish_reason  `stop` or `length`
    prompt_tokens  number of tokens of the prompt
    cached_tokens  those of them whose keys and values the prefix cache had
    """

    text: str
    adapter: str | None
    tokens: tuple[TextToken, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int

    @property
    def token_ids(self) -> list[int]:
        """Return the ids of the reply's tokens, the one that ended it included."""
        return [token.id for token in self.tokens]


class LLM:
    """One base model with any number of adapters, for programs. All prompts of a call run as one continuous batch.

    The object starts a thread of its own, and its methods block. Several threads may call them at once; their prompts
    share the steps. `close`, or leaving a `with`, frees the memory.
    """

    def __init__(
        self,
        base: str | Path = DEFAULT_BASE,
        *,
        adapters: str | Path | Sequence[str | Path] = (),
        settings: Mapping[str, Setting] | None = None,
        report: ReportLine = lambda line: None,
    ) -> None:
        """Load the base, after fetching it if it has a known name.

        Args:
            base      a name that `manylora pull` knows, or a directory
            adapters  one or more directories whose PEFT folders have names in the calls below
            settings  further settings by their names, such as `{"model.quantize": "int8"}`
            report    receives one line for each stage of the start
        Raises: `StartupError`, as `manylora serve` does
        """
        roots = (adapters,) if isinstance(adapters, str | Path) else tuple(adapters)
        flags = dict(settings or {}) | {"model.base": str(base), "model.more_bases": ()}
        if roots:
            flags["adapters.roots"] = tuple(str(Path(root).expanduser().resolve()) for root in roots)
        self._open(load_config(flags=flags), lambda line: None if is_passing(line) else report(line))

    @classmethod
    def from_config(cls, config: Config, report: ReportLine = lambda line: None) -> Self:
        """Load the base of a configuration, which has no other; `report` receives passing lines too.

        Raises `StartupError`.
        """
        made = cls.__new__(cls)
        made._open(config, report)
        return made

    def _open(self, config: Config, report: ReportLine) -> None:
        if config.model.more_bases:
            raise ConfigInvalid("model.more_bases: only a server has several bases (manylora serve)")
        refuse_impossible_bases(config)  # before a base of many gigabytes is fetched
        pull(config.model.base, cache_dir(config))
        [base] = server_bases(config)
        config = base.config
        engine, served = build_engine(config, report)
        self._clock = SystemClock()
        self._pooling = Pooling(config.model.embedding_pooling)
        self._client = EngineClient(InProcessTransport(lambda: (engine, served)))
        started = StartedBase(config=config, served=served, client=self._client, tokenizer=tokenizer_of(served))
        self._models = open_models([started], self._clock)
        self._service = GenerationService(
            models=self._models,
            admission=AdmissionControl(config.engine.max_running),
            meters=Meters(),
            clock=self._clock,
        )
        # Prompts beyond those that can run wait here, where no queue time ends them.
        self._limit = asyncio.Semaphore(config.engine.max_running)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="manylora-llm", daemon=True)
        self._thread.start()
        self._is_closed = False
        try:
            self._wait(self._client.start())
        except BaseException:
            self.close()  # no caller has this object, so that its thread and its engine would stay
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and free the model. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._models.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        gc.collect()  # the parts of the engine, which holds the weights, refer to each other

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, prompts: str, adapter: Adapter | None = None, **options: Unpack[GenerateOptions]
    ) -> TextOutput: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[TextOutput]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextOutput | list[TextOutput]:
        """Complete one prompt or a list of prompts, without a chat template.

        Args:     adapter  a name for all prompts, or one name for each; None is the base. A mapping such as
                           `{"tone": 0.5, "triage": 1.0}` applies several adapters together
                  options  as `GenerateOptions`
        Returns:  one output for one prompt, else a list in the prompts' order
        Raises:   `RequestRejected` or another `ManyloraError` of the first prompt that fails; the others end with it
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        outputs = self._outputs([TextPrompt(text) for text in texts], adapter, options)
        return outputs[0] if isinstance(prompts, str) else outputs

    @overload
    def chat(
        self, messages: Sequence[Message], adapter: Adapter | None = None, **options: Unpack[GenerateOptions]
    ) -> TextOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[TextOutput]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextOutput | list[TextOutput]:
        """Reply to one conversation or a list of conversations, with the chat template of the adapter or of the base.

        `messages`: mappings with `role` and `content`. Other arguments, result and errors are those of `generate`.
        """
        single = [each for each in messages if isinstance(each, Mapping)]
        several = [tuple(each) for each in messages if not isinstance(each, Mapping)]
        if single and several:
            raise InvalidParameter("`messages` is one conversation or a list of conversations, not both")
        prompts = [_chat(each) for each in several or [tuple(single)]]
        outputs = self._outputs(prompts, adapter, options)
        return outputs if several else outputs[0]

    def stream(
        self, prompt: str | Sequence[Message], adapter: Adapter | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[str]:
        """Yield the text of one reply as it comes, to a prompt as it stands or to a conversation.

        The engine stops the reply if the caller stops reading. Errors are those of `generate`.
        """
        given = TextPrompt(prompt) if isinstance(prompt, str) else _chat(prompt)
        pieces = self._pieces(_order(given, adapter, options))
        try:
            while (text := self._wait(_next(pieces))) is not None:
                yield text
        finally:
            self._wait(pieces.aclose())

    def embed(self, prompts: Sequence[str], adapter: Adapter | None = None) -> list[list[float]]:
        """Return the embedding of each prompt, a vector of length 1, in their order.

        `model.embedding_pooling` says how a vector is made. Errors are those of `generate`.
        """
        orders = [
            replace(_order(TextPrompt(text), adapter, {}), max_new_tokens=0, pooling=self._pooling) for text in prompts
        ]
        return self._wait(self._pooled(orders, lambda completion: rows_of(completion.outputs.pooled[0])[0]))

    def classify(self, texts: Sequence[str], adapter: str) -> list[dict[str, float]]:
        """Return the probability of each label for each text, in their order, by an adapter's head (PEFT's SEQ_CLS).

        Labels have the names of `id2label` in the adapter's `config.json`, else `LABEL_0` and so on. For a regression
        the value is the result. Errors are those of `generate`, and `TaskUnsupported` for an adapter without such a
        head.
        """
        orders = [
            replace(_order(TextPrompt(text), adapter, {}), max_new_tokens=0, pooling=Pooling.CLASSES) for text in texts
        ]
        return self._wait(self._pooled(orders, _classes))

    # ── inside the loop ──────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._is_closed:
            work.close()
            raise InvalidParameter("this LLM is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _outputs(
        self,
        prompts: Sequence[PromptInput],
        adapter: Adapter | Sequence[Adapter | None] | None,
        options: GenerateOptions,
    ) -> list[TextOutput]:
        names: list[Adapter | None] = (
            [adapter] * len(prompts) if adapter is None or isinstance(adapter, str | Mapping) else list(adapter)
        )
        if len(names) != len(prompts):
            raise InvalidParameter(f"`adapter` has {len(names)} names for {len(prompts)} prompts")
        orders = [
            _order(prompt, name, options, index)
            for index, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        ]
        return self._wait(self._run_all(orders))

    async def _run_all(self, orders: Sequence[Order]) -> list[TextOutput]:
        tasks = [asyncio.ensure_future(self._run(order)) for order in orders]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _run(self, order: Order) -> TextOutput:
        texts: list[str] = []
        tokens: list[TextToken] = []
        async with self._limit, self._completion(order) as completion:
            async for piece in completion.outputs.pieces():
                if piece is not None:
                    texts.append(piece.text)
                    tokens.extend(piece.tokens)
            (end,) = completion.outputs.finished
            return TextOutput(
                text="".join(texts),
                adapter=",".join(name for name, _ in order.adapter.mixed) or order.adapter_name,
                tokens=tuple(tokens),
                finish_reason="length" if end.reason.value == "length" else "stop",
                prompt_tokens=completion.num_prompt_tokens,
                cached_tokens=completion.num_cached_tokens,
            )

    async def _pooled(self, orders: Sequence[Order], result_of: Callable[[Completion], Result]) -> list[Result]:
        async def result(order: Order) -> Result:
            async with self._limit, self._completion(order) as completion:
                await completion.outputs.collect()
                return result_of(completion)

        return list(await asyncio.gather(*map(result, orders)))

    async def _pieces(self, order: Order) -> AsyncGenerator[str, None]:
        async with self._limit, self._completion(order) as completion:
            async for piece in completion.outputs.pieces():
                if piece is not None and piece.text:
                    yield piece.text

    def _completion(self, order: Order) -> Completion:
        state = RequestState(request_id=mint_request_id(), arrived_s=self._clock.monotonic_s())
        return Completion(self._service, order, state)


def _chat(messages: Sequence[Message]) -> ChatPrompt:
    return ChatPrompt(messages=tuple(messages), instead=_INSTEAD)


def _order(prompt: PromptInput, adapter: Adapter | None, options: GenerateOptions, index: int = 0) -> Order:
    """Return the order for one prompt. Raises `InvalidParameter` for an unknown option or a value out of range."""
    if unknown := sorted(options.keys() - GenerateOptions.__annotations__.keys()):
        known = ", ".join(GenerateOptions.__annotations__)
        raise InvalidParameter(f"`{unknown[0]}` is no option; known are {known}, and `sampling` takes a SamplingParams")
    if (max_tokens := options.get("max_tokens", MAX_TOKENS)) is not None and max_tokens < 1:
        raise InvalidParameter(f"`max_tokens` must be at least 1. Given: {max_tokens}")
    sampling = options.get("sampling") or SamplingParams(temperature=0.0)
    _check_ranges(sampling)
    seed = options.get("seed")
    return Order(
        model=None,
        adapter_name=None if isinstance(adapter, Mapping) else adapter,
        adapter=_fields(adapter),
        prompts=(prompt,),
        num_sequences=1,
        sampling=sampling,
        seed=None if seed is None else seed + index,
        stop=StopRules(strings=tuple(options.get("stop", ()))),
        grammar=options.get("grammar"),
        max_new_tokens=max_tokens,
        is_clamped=True,
        is_stream=True,
        form=_FORM,
        adapter_field="adapter",
    )


def _fields(adapter: Adapter | None) -> AdapterFields:
    if not isinstance(adapter, Mapping):
        return AdapterFields()
    return AdapterFields(mixed=read_mix(list(adapter.items()), MAX_ADAPTERS), names_several=True)


def _classes(completion: Completion) -> dict[str, float]:
    text = completion.prompts[0].rules.text
    [logits] = rows_of(completion.outputs.pooled[0])
    probs = probabilities(logits, text.problem)
    return {label_name(text.labels, label): prob for label, prob in enumerate(probs)}


async def _next(pieces: AsyncGenerator[str, None]) -> str | None:
    return await anext(pieces, None)


_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < math.inf, "at least 0"),
    "top_k": (lambda value: value >= 1, "at least 1"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "typical_p": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: 0 < value < math.inf, "above 0"),
    "frequency_penalty": (math.isfinite, "finite"),
    "presence_penalty": (math.isfinite, "finite"),
    "num_logprobs": (lambda value: 0 <= value <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"),
}


def _check_ranges(sampling: SamplingParams) -> None:
    """Check the values that a server's routes check of a request. Raises `InvalidParameter`."""
    for name, (is_within, words) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not is_within(value):
            raise InvalidParameter(f"`{name}` must be {words}. Given: {value}")
    for token, bias in sampling.logit_bias:
        if token < 0:
            raise InvalidParameter(f"`logit_bias`: token ids must be at least 0. Given: {token}")
        if not math.isfinite(bias):
            raise InvalidParameter(f"`logit_bias` of token {token} must be finite. Given: {bias}")
