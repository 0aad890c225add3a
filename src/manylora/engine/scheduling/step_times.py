"""The time of a step, estimated from the steps before it: an input of the plan, so that running streams keep moving."""

from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.work import RowWork, StepTime

LEAST_STEPS = 8
"""Steps of a kind before an estimate: caches and memory are cold in the first ones."""

DECODE_MEMORY = 1 - 1 / 256
PROMPT_MEMORY = 1 - 1 / 64
"""The weight of a step in the fit falls by this factor with each later step of its kind."""

OUTLIER = 1.5
"""A step counts as so many times its estimate at most: another process took its processor for a while. A faster step
counts as it is, since nothing makes a step faster than the machine."""

OFF = 1.25
LASTING = 8
"""A step is off by this ratio to its estimate, or by its inverse. After so many that are off to the same side the speed
has changed, and the memory restarts: few steps undo any change."""

LEAST_S = 1e-6
"""No step is shorter: a clock that stands still."""

ROWS_OF_A_READ = 16
"""Rows whose products take about as long as the read of the weights: the fit assumes it while all steps have the same
rows, so that a lone row is no guess without data."""


class StepTimes:
    """Keeps the estimate of steps' times.

    Two lines by least squares of relative errors with exponential forgetting: steps of rows that decode alone give
    `step_s` and `decode_row_s`; from steps with prompts, less what the first line says of their other rows, follow
    `prompt_row_s` and `attention_s`. Each kind of step has a memory of its own: an hour of decoding forgets nothing of
    prompts.
    Source: recursive least squares, e.g. Ljung and Söderström, Theory and Practice of Recursive Identification, 1983;
    a memory that shrinks with the error: Fortescue, Kershenbaum and Ydstie, Automatica 17 (6), 1981.
    """

    def __init__(self, work: RowWork) -> None:
        self._work = work
        self._decoding = _Line(DECODE_MEMORY)
        self._prompts = _Line(PROMPT_MEMORY)

    def estimate(self) -> StepTime | None:
        """Return the estimate; None before `LEAST_STEPS` of both kinds."""
        if self._decoding.steps < LEAST_STEPS or self._prompts.steps < LEAST_STEPS:
            return None
        (step, rows), (products, attention) = self._decoding.slopes, self._prompts.slopes
        return StepTime(step_s=step, decode_row_s=rows / ROWS_OF_A_READ, prompt_row_s=products, attention_s=attention)

    def note(self, plan: Plan, took_s: float) -> None:
        """Take the time of a step that was computed."""
        decoding = prompt = 0
        work = 0.0
        for chunk in plan.chunks:
            rows = chunk.stop - chunk.start
            if rows > 1:
                prompt += rows
                work += self._work.of(chunk.start, chunk.stop)
            else:
                decoding += 1 + len(chunk.draft_tokens)
        if prompt == 0:
            if ratio := self._decoding.add(1.0, decoding / ROWS_OF_A_READ, took_s, beside_s=0.0):
                self._prompts.restart(ratio)  # the machine's speed has changed for both
        elif decoding == 0:
            self._prompts.add(prompt, work - prompt, took_s, beside_s=0.0)
        elif self._decoding.steps >= LEAST_STEPS:
            beside_s = self._decoding.of(1.0, decoding / ROWS_OF_A_READ)
            self._prompts.add(prompt, work - prompt, took_s, beside_s=beside_s)


class _Line:
    """The line y = p·u + q·v through weighted points; p and q are equal as far as the points say nothing of them.

    A point weighs as the inverse square of its step's expected time: an error of a tenth counts alike in all steps.
    """

    __slots__ = (
        "_longest_s",
        "_memory",
        "_off",
        "_ratio",
        "_uu",
        "_uv",
        "_uy",
        "_vv",
        "_vy",
        "_weight",
        "slopes",
        "steps",
    )

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._uu = self._uv = self._vv = self._uy = self._vy = 0.0
        self._weight = 0.0  # of all points, each 1 as it comes
        self._longest_s = LEAST_S  # of the first steps
        self._off = 0  # steps of late that took longer than expected less those that took less
        self._ratio = 1.0  # the nearest to 1 of theirs to their estimates
        self.slopes = (0.0, 0.0)
        self.steps = 0

    def of(self, u: float, v: float) -> float:
        """Return y."""
        return self.slopes[0] * u + self.slopes[1] * v

    def add(self, u: float, v: float, took_s: float, *, beside_s: float) -> float | None:
        """Add the point of a step that took `took_s`, `beside_s` of it for other rows.

        Return the ratio of the new speed to the old one if the memory restarted.
        """
        if took_s < LEAST_S:
            return None
        restarted = None
        if self.steps >= LEAST_STEPS:
            restarted = self._watch(took_s / max(LEAST_S, beside_s + self.of(u, v)))
            expected_s = max(LEAST_S, beside_s + self.of(u, v))
            took_s = min(took_s, expected_s * OUTLIER)
        else:  # the first steps weigh alike, as the longest of them does
            expected_s = max(took_s, self._longest_s)
            self._weigh((self._longest_s / expected_s) ** 2)
            self._longest_s = expected_s
        y, scale = max(0.0, took_s - beside_s), expected_s**-2
        self._weigh(self._memory)
        self._uu += scale * u * u
        self._uv += scale * u * v
        self._vv += scale * v * v
        self._uy += scale * u * y
        self._vy += scale * v * y
        self._weight = self._memory * self._weight + 1
        self.steps += 1
        self.slopes = self._solve()
        return restarted

    def _watch(self, ratio: float) -> float | None:
        """Take the ratio of a step's time to its estimate; restart after a lasting change and return its ratio."""
        side = 0 if 1 / OFF <= ratio <= OFF else 1 if ratio > 1 else -1
        if side == 0 or side * self._off < 0:
            self._off -= min(2, max(-2, self._off))
        self._off += side
        if side * self._off == 1 or (side * self._off > 1 and abs(ratio - 1) < abs(self._ratio - 1)):
            self._ratio = ratio
        if abs(self._off) < LASTING:
            return None
        restarted = self._ratio
        self.restart(restarted)
        return restarted

    def restart(self, ratio: float) -> None:
        """Let all that the memory holds count as one point of a speed that takes `ratio` times as long."""
        if self.steps == 0:
            return
        self._weigh(1 / (self._weight * ratio**2))
        self._uy, self._vy = ratio * self._uy, ratio * self._vy
        self._weight, self._off = 1.0, 0
        self.slopes = self._solve()

    def _weigh(self, factor: float) -> None:
        """Let all points weigh `factor` times as much."""
        self._uu, self._uv, self._vv = factor * self._uu, factor * self._uv, factor * self._vv
        self._uy, self._vy = factor * self._uy, factor * self._vy

    def _solve(self) -> tuple[float, float]:
        """Return p and q, neither negative, with a small penalty on (p - q)²."""
        tie = 0.001 * (self._uu + self._vv)
        uu, uv, vv = self._uu + tie, self._uv - tie, self._vv + tie
        determinant = uu * vv - uv * uv
        p = (self._uy * vv - self._vy * uv) / determinant
        q = (self._vy * uu - self._uy * uv) / determinant
        if p < 0:
            return 0.0, max(0.0, self._vy / self._vv)
        if q < 0:
            return self._uy / self._uu, 0.0
        return p, q
