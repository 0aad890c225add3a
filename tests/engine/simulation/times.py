"""The time of a simulated step: a read of the weights, its rows, and the attention of its prompts."""

from collections.abc import Callable

from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.work import RowWork

READ_S, DECODE_ROW_S, PROMPT_ROW_S, ATTENTION_S = 8e-3, 0.4e-3, 0.7e-3, 1.1e-3
"""Attention is slower than products of as many multiplications, as on a real machine."""


def seconds_of(work: RowWork) -> Callable[[Plan], float]:
    """Return the function that gives a plan's time in seconds."""

    def seconds(plan: Plan) -> float:
        took = READ_S
        for chunk in plan.chunks:
            rows = chunk.stop - chunk.start
            if rows == 1:
                took += DECODE_ROW_S * chunk.num_rows
            else:
                took += PROMPT_ROW_S * rows + ATTENTION_S * (work.of(chunk.start, chunk.stop) - rows)
        return took

    return seconds
