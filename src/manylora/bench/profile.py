"""The time of a step, kernel by kernel and outside them."""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manylora.bench.steps import TimedStep, decode_steps, prompt_steps
from manylora.clock import Clock
from manylora.engine.engine import Engine
from manylora.engine.request import SamplingParams
from manylora.errors import InvalidParameter

ROWS = (1, 8, 32)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, top_k=50, seed=1)


@dataclass(frozen=True, slots=True)
class StepProfile:
    """One kind of step, times in milliseconds.

    step_ms     median of the whole step; beside it the bounds of the middle 80 %
    host_ms     median of the time outside kernels
    kernels_ms  mean by kind of kernel, without kinds that took no time
    """

    name: str
    steps: int
    step_ms: float
    step_p10_ms: float
    step_p90_ms: float
    host_ms: float
    kernels_ms: dict[str, float]


def profile_steps(
    engine: Engine,
    adapters: Sequence[str],
    vocab: int,
    prompt_rows: int,
    clock: Clock,
    report: Callable[[str], None],
    rounds: int = 2,
) -> list[StepProfile]:
    """Profile decode steps of 1, 8 and 32 rows on the base, sampled ones, ones with adapters, and a step of prompt.

    The kinds take turns, so that a busy machine disturbs all alike.
    Raises: InvalidParameter if the back end cannot be profiled.
    """
    profile = engine.start_profile()
    if profile is None:
        raise InvalidParameter("this back end has no profile; the native kernels have", parameter="model.kernels")
    most = ROWS[-1]

    def decode(rows: int, names: Sequence[str] = (), sampling: SamplingParams | None = None) -> list[TimedStep]:
        return decode_steps(engine, rows, names, vocab, clock=clock, sampling=sampling, profile=profile)

    kinds: dict[str, Callable[[], list[TimedStep]]] = {
        f"{rows} row{'s' * (rows > 1)}": functools.partial(decode, rows) for rows in ROWS
    }
    kinds[f"{most} rows, sampled"] = lambda: decode(most, sampling=SAMPLED)
    if adapters:
        kinds[f"{most} rows, {len(adapters)} adapters"] = lambda: decode(most, adapters)
    kinds[f"prompt of {prompt_rows}"] = lambda: prompt_steps(
        engine, prompt_rows, vocab, clock=clock, profile=profile, repeats=3
    )
    found: dict[str, list[TimedStep]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, measure in kinds.items():
            report(name)
            times = measure()
            if number > 0:  # before that caches, clocks and adapters get warm
                found[name] += times
    return [_summary(name, times) for name, times in found.items()]


def _summary(name: str, times: list[TimedStep]) -> StepProfile:
    ordered, host = sorted(step.seconds for step in times), sorted(step.host for step in times)
    last = len(ordered) - 1
    means = {kind: sum(step.kernels[kind] for step in times) / len(times) for kind in times[0].kernels}
    return StepProfile(
        name=name,
        steps=len(ordered),
        step_ms=_ms(ordered[last // 2]),
        step_p10_ms=_ms(ordered[last // 10]),
        step_p90_ms=_ms(ordered[9 * last // 10]),
        host_ms=_ms(host[last // 2]),
        kernels_ms={kind: _ms(mean) for kind, mean in sorted(means.items(), key=lambda item: -item[1]) if mean > 0},
    )


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
