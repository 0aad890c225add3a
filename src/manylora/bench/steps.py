"""Single steps of an engine under measurement: pure decode steps of a full batch, and steps of prompt alone."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import Clock
from manylora.engine.engine import Engine
from manylora.engine.events import StepEvents
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, mint_request_id
from manylora.kernels.interface import Profile

PROMPT = 128
STEPS = 24
FIRST_ID = 3
UNSETTLED_STEPS = 2  # the first ones may still share their step with the end of a prompt


@dataclass(frozen=True, slots=True)
class TimedStep:
    """The seconds of one step, whole and by kind of kernel."""

    seconds: float
    kernels: Mapping[str, float]

    @property
    def host(self) -> float:
        """Seconds outside kernels."""
        return self.seconds - sum(self.kernels.values())


def decode_steps(
    engine: Engine,
    rows: int,
    adapters: Sequence[str],
    vocab: int,
    *,
    clock: Clock,
    sampling: SamplingParams | None = None,
    profile: Profile | None = None,
) -> list[TimedStep]:
    """Time steps in which each of `rows` sequences draws a token, after prompts of 128 random ones; no speculation.

    Args:  adapters  their names take turns over the sequences; none: the base
    """
    budget = STEPS + rows  # the first sequences decode already while the others begin
    for index in range(rows):
        name = adapters[index % len(adapters)] if adapters else None
        _submit(engine, PROMPT, budget, vocab, seed=index, adapter=name, sampling=sampling)

    def is_decode(running: int, events: StepEvents) -> bool:
        return running == rows and len(events.tokens) == rows and not events.finished

    return _run(engine, is_decode, clock, profile)[UNSETTLED_STEPS:]


def prompt_steps(
    engine: Engine, rows: int, vocab: int, *, clock: Clock, repeats: int = 6, profile: Profile | None = None
) -> list[TimedStep]:
    """Time steps that compute `rows` rows of one prompt and draw no token."""
    found: list[TimedStep] = []
    for seed in range(repeats):
        _submit(engine, rows + 1, 1, vocab, seed=seed)
        found += _run(engine, lambda running, events: not events.tokens and not events.finished, clock, profile)
    return found


def _submit(
    engine: Engine,
    prompt: int,
    budget: int,
    vocab: int,
    *,
    seed: int,
    adapter: str | None = None,
    sampling: SamplingParams | None = None,
) -> None:
    source = random.Random(seed)
    engine.submit(
        Request(
            id=mint_request_id(),
            flow=Flow("benchmark"),
            salt="",
            tokens=tuple(source.randrange(FIRST_ID, vocab) for _ in range(prompt)),
            adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
            sampling=sampling or SamplingParams(temperature=0.0),
            stop=StopParams(max_new_tokens=budget, ignore_eos=True),
            speculation=False,
        )
    )


def _run(
    engine: Engine, is_counted: Callable[[int, StepEvents], bool], clock: Clock, profile: Profile | None
) -> list[TimedStep]:
    """Step until there is no work; `is_counted` gets the sequences that ran before a step, and its events."""
    found: list[TimedStep] = []
    while engine.has_work:
        running = engine.stats().running
        before = profile.seconds() if profile else {}
        begun_s = clock.monotonic_s()
        events = engine.step()
        took_s = clock.monotonic_s() - begun_s
        if is_counted(running, events) and not engine.is_waiting_for_adapters:
            after = profile.seconds() if profile else {}
            found.append(TimedStep(took_s, {kind: after[kind] - before[kind] for kind in after}))
    return found
