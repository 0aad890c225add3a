"""A deterministic engine without a model: it says what the prompt tells it to, and fails when told to.

Prompts:  `SAY:text` generates text, then ends the sequence; else the reply is `Hello from <adapter or base>.`
          `HOLD` never ends, whatever its budget;  `WAIT` never starts;
          `CRASH` makes a step raise;  `EXIT` kills the process;
          `LOAD` waits for its adapter for ever;  `SPIN` computes for two seconds before its first token;
          `PART` is computed up to `part` positions, and no further;  `PAIR` gets two tokens a step;
          `GATE` waits while the server's folder has a file `gate`, and `REST` does so after its first token
Adapters: `fail-<ErrorClass>` fails with that class of `errors/`; `missing…` is not found; any other name is known
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, StoreStats
from manylora.adapters.sources.source import Source
from manylora.clock import SystemClock
from manylora.config.settings import Config
from manylora.engine.events import (
    NO_GRAMMARS,
    AdapterUse,
    EngineStats,
    Finished,
    FinishReason,
    PooledValues,
    PromptScore,
    StepEvents,
    TokenEvent,
)
from manylora.engine.pooling import Pooling
from manylora.engine.request import Request
from manylora.engine.stopping import StopChecker
from manylora.errors import AdapterError
from manylora.failure import Failure
from manylora.ids import Digest, Flow, RequestId
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.loop import ProgressLine
from manylora.server.engine_client.served_model import ServedModel
from manylora.usage import Counts
from tests.server.fake_adapters import FakeAdapters
from tests.server.fake_texts import FakeTexts
from tests.server.tiny_tokenizer import EOS, VOCAB_SIZE, save_tokenizer

STEP_S = 0.002
SPIN_S = 2.0
QUEUE_MS = 7.0
MAX_MODEL_LEN = 512
NOTHING_STORED = StoreStats(
    bank_bytes_total=0,
    bank_bytes_used=0,
    host_bytes_used=0,
    disk_bytes_used=0,
    on_device=0,
    in_host=0,
    on_disk=0,
    loads=0,
    failures=0,
    evictions=0,
)


@dataclass
class _Live:
    request: Request
    script: list[int]
    prompt: str
    stopper: StopChecker
    generated: list[int] = field(default_factory=list)


class FakeEngine:
    """Has the engine's methods; `live`, `aborted` and `adapters` are for tests to look at, `store` to be set."""

    def __init__(self, tokenizer: Tokenizer, *, step_s: float = STEP_S) -> None:
        self._tokenizer = tokenizer
        self._step_s = step_s
        self._clock = SystemClock()
        self.live: dict[RequestId, _Live] = {}
        self.submitted: list[Request] = []
        self.aborted: list[tuple[RequestId, FinishReason]] = []
        self._finished: list[Finished] = []
        self.adapters = FakeAdapters()
        self.local: Source | None = None  # where local adapters have to be; None: any name is known
        self.texts = FakeTexts()
        self.store = NOTHING_STORED
        self._steps = 0
        self._completion_tokens = 0
        self.refused_seed: int | None = None  # a sequence with this seed is refused
        self.first_alternative = 65
        self.longest = 0  # most tokens that any sequence was given
        self.part = 0
        self.gate: Path | None = None
        self.dropped: list[Flow] = []  # flows whose grammars it was told to drop
        self.cached = 0  # prompt positions found in the cache, of those computed

    @property
    def has_work(self) -> bool:
        return bool(self.live or self._finished)

    @property
    def is_waiting_for_adapters(self) -> bool:
        return bool(self.live) and all("WAIT" in live.prompt for live in self.live.values())

    def submit(self, request: Request) -> None:
        self.submitted.append(request)
        prompt = self._tokenizer.decode(request.tokens, skip_special_tokens=False)
        if request.sampling.seed == self.refused_seed:
            refusal = Failure(error="Overloaded", message="Model is overloaded")
            self._finish(self._begun(request, [], prompt), FinishReason.REJECTED, refusal)
            return
        if (failure := self._failure(request.adapter)) is not None:
            self._finish(self._begun(request, [], prompt), FinishReason.ADAPTER_FAILURE, failure)
            return
        loaded = () if request.adapter is None else request.adapter.loaded
        if any(request.text != self.texts.digest_of(ref.id) for ref in loaded):
            changed = Failure(error="AdapterTextChanged", message="told to have changed")
            self._finish(self._begun(request, [], prompt), FinishReason.REJECTED, changed)
            return
        self.live[request.id] = self._begun(request, self._script(request, prompt), prompt)

    def _begun(self, request: Request, script: list[int], prompt: str) -> _Live:
        own = self._tokenizer.with_added(request.stop.added_tokens)
        stopper = StopChecker(request.stop, {EOS}, lambda skips: own.stream(skip_special_tokens=skips, continues=True))
        return _Live(request, script, prompt, stopper)

    def _failure(self, adapter: AdapterRef | None) -> Failure | None:
        if adapter is not None and adapter.source is SourceName.LOCAL and self.local is not None:
            try:
                self.local.locate(adapter)
            except AdapterError as error:
                return Failure.of(error)
        return _adapter_failure(adapter)

    def abort(self, request_id: RequestId, reason: FinishReason) -> None:
        live = self.live.pop(request_id, None)
        if live is not None:
            self.aborted.append((request_id, reason))
            self._finish(live, reason)

    def step(self) -> StepEvents:
        self._steps += 1
        self._clock.sleep_s(self._step_s)
        tokens: list[TokenEvent] = []
        for live in list(self.live.values()):
            if "CRASH" in live.prompt:
                raise RuntimeError("told to crash")
            if "SPIN" in live.prompt and not live.generated:
                end_s = self._clock.monotonic_s() + SPIN_S
                while self._clock.monotonic_s() < end_s:
                    pass
            if "EXIT" in live.prompt and live.generated:
                os._exit(9)
            if self._is_gated(live) or any(word in live.prompt for word in ("WAIT", "LOAD", "PART")):
                continue
            if live.request.stop.max_new_tokens == 0:
                del self.live[live.request.id]
                self._finish(live, FinishReason.LENGTH, pooled=_pooled(live.request))
            else:
                tokens.append(self._token(live))
                if "PAIR" in live.prompt and live.request.id in self.live:  # an accepted draft token
                    tokens.append(self._token(live))
        finished, self._finished = tuple(self._finished), []
        return StepEvents(tuple(tokens), finished)

    def _is_gated(self, live: _Live) -> bool:
        waits = "GATE" in live.prompt or ("REST" in live.prompt and live.generated)
        return bool(waits) and self.gate is not None and self.gate.exists()

    def shutdown(self) -> StepEvents:
        failure = Failure(error="Unavailable", message="the server is shutting down; repeat the request")
        for live in list(self.live.values()):
            self._finish(live, FinishReason.SHUTDOWN, failure)
        self.live.clear()
        finished, self._finished = tuple(self._finished), []
        return StepEvents((), finished)

    def tend(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        waiting = sum("WAIT" in live.prompt for live in self.live.values())
        loading = sum("LOAD" in live.prompt for live in self.live.values())
        zeros: dict[str, Any] = dict.fromkeys(EngineStats.__dataclass_fields__, 0) | {"grammars": NO_GRAMMARS}
        running = len(self.live) - waiting - loading
        own = {"waiting": waiting, "loading": loading, "running": running, "steps": self._steps, "ranks_up": 1}
        return EngineStats(**{**zeros, **own, "completion_tokens": self._completion_tokens, "adapters": self.store})

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        return self.adapters.manage(action, ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        return self.adapters.info(ref)

    def infos(self) -> tuple[AdapterInfo, ...]:
        return self.adapters.infos()

    def drop_grammars(self, flows: Iterable[Flow]) -> None:
        self.dropped += flows

    def _script(self, request: Request, prompt: str) -> list[int]:
        name = request.adapter.id if request.adapter else "base"
        text = prompt.partition("SAY:")[2] or f"Hello from {name}."
        if request.sampling.temperature > 0 and "SAY:" not in prompt:
            text = f"{request.sampling.seed % 10}{text}"
        return [*self._tokenizer.encode(text, add_special_tokens=False), EOS]

    def _token(self, live: _Live) -> TokenEvent:
        request, position = live.request, len(live.generated)
        token_id = ord("x") if "HOLD" in live.prompt else live.script[min(position, len(live.script) - 1)]
        live.generated.append(token_id)
        self.longest = max(self.longest, len(live.generated))
        self._completion_tokens += 1
        count = request.sampling.num_logprobs
        event = TokenEvent(
            request_id=request.id,
            token_id=token_id,
            logprob=None if count is None else -0.5 - request.sampling.seed % 10,
            alternatives=tuple((self.first_alternative + other, -1.0 - other) for other in range(count or 0)),
            adapter=_use(request.adapter) if position == 0 else None,
            queue_ms=QUEUE_MS if position == 0 else None,
            cached_tokens=min(self.cached, len(request.tokens)) if position == 0 else None,
            prompt=_scores(request) if position == 0 else None,
        )
        if "HOLD" not in live.prompt:
            self._end_if_over(live, token_id)
        return event

    def _end_if_over(self, live: _Live, token_id: int) -> None:
        stop = live.stopper.push(token_id, len(live.generated))
        if stop is not None:
            del self.live[live.request.id]
            self._finish(live, stop.reason, stop_string=stop.stop_string)

    def _finish(
        self,
        live: _Live,
        reason: FinishReason,
        failure: Failure | None = None,
        stop_string: str | None = None,
        pooled: PooledValues | None = None,
    ) -> None:
        prompt_tokens = len(live.request.tokens)
        computed = prompt_tokens if live.generated or pooled else self.part if "PART" in live.prompt else 0
        counts = Counts(
            prompt_tokens=prompt_tokens,
            cached_tokens=min(self.cached, computed),
            completion_tokens=len(live.generated),
            computed_tokens=computed,
        )
        has_run = bool(live.generated or pooled)
        self._finished.append(
            Finished(
                request_id=live.request.id,
                reason=reason,
                counts=counts,
                stop_string=stop_string,
                failure=failure,
                queue_ms=QUEUE_MS if has_run else None,
                run_ms=2.0 * len(live.generated) if has_run else None,
                prompt=None if has_run or failure else _scores(live.request),
                pooled=pooled,
                adapter=_use(live.request.adapter) if pooled else None,
            )
        )


def _pooled(request: Request) -> PooledValues | None:
    """A vector of the prompt's length and 1, 2, 3; or logits 0, 1, 2; or each token as likely as its id is large."""
    if request.pooling is None:
        return None
    if request.pooling is Pooling.TOKEN_CLASSES:
        rows = [[token % 3, 0.25 + token / 1024] for token in request.tokens]
    else:
        rows = [[0.0, 1.0, 2.0] if request.pooling is Pooling.CLASSES else [len(request.tokens), 1.0, 2.0, 3.0]]
    return PooledValues(np.array(rows, dtype="<f4").tobytes(), len(rows[0]))


def _adapter_failure(adapter: AdapterRef | None) -> Failure | None:
    if adapter is None:
        return None
    if adapter.id.startswith("fail-"):
        return Failure(error=adapter.id.removeprefix("fail-"), message="told to fail")
    if adapter.id.startswith("missing"):
        message = f"Adapter '{adapter.id}' was not found in source '{adapter.source}'"
        return Failure(error="AdapterNotFound", message=message)
    return None


def _scores(request: Request) -> tuple[PromptScore, ...] | None:
    """Return scores of -1, -2, … for the tokens of a prompt from the second on."""
    count = request.prompt_logprobs
    if count is None:
        return None
    others = tuple((65 + other, -0.25 - other) for other in range(count))
    return tuple(PromptScore(-float(index), others) for index in range(1, len(request.tokens)))


def _use(adapter: AdapterRef | None) -> AdapterUse | None:
    return None if adapter is None else AdapterUse(digest=Digest("0" * 64), tier="on_disk", load_ms=12.0)


def served_for(directory: Path) -> ServedModel:
    return ServedModel(
        model_id="tiny",
        base_dir=str(directory),
        sha="0123456789abcdef",
        dtype="float32",
        device="cpu",
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        embedding_size=4,
        adapter_roots=(str(directory / "adapters"),),
        created_s=1_700_000_000,
    )


def build(config: Config, tell: ProgressLine) -> tuple[FakeEngine, ServedModel]:
    """A `driver.EngineFactory`: `model.base` is the tokenizer's directory; with `slowly` in it, it takes a minute."""
    directory = Path(config.model.base)
    if not directory.is_dir():
        from manylora.errors import ModelNotFound

        raise ModelNotFound(f"no base model in {directory}")
    save_tokenizer(directory)
    tell("the fake engine is being built")
    if (directory / "slowly").exists():
        SystemClock().sleep_s(60)
    engine = FakeEngine(Tokenizer(directory, model_id="tiny"))
    engine.gate = directory / "gate"
    uploads = (SourceName.PBASE,) if config.adapters.registry_dir else ()
    served = replace(
        served_for(directory),
        adapter_sources=(SourceName.LOCAL, *uploads),
        registry_dir=config.adapters.registry_dir,
    )
    return engine, served
