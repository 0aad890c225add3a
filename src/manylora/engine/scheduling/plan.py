"""The plan of one step, which the scheduler makes and the executor runs. Data alone."""

import dataclasses
from dataclasses import dataclass

from manylora.ids import RequestId


@dataclass(slots=True)  # one for every row that decodes: a frozen one takes three times as long to make
class Chunk:
    """Positions `[start, stop)` of one sequence; `is_sampled` if a token is drawn after the last of them.

    draft_tokens  computed at the positions from `stop` on as if they had been drawn already; empty unless `is_sampled`.
                  A token is drawn after each of them, in order, until a drawn token differs from the draft. So the
                  tokens are those of as many steps of one token.
    scored        half-open range of its positions whose logits score the prompt's token after each; empty, as a rule
    """

    request_id: RequestId
    start: int
    stop: int
    is_sampled: bool
    draft_tokens: tuple[int, ...] = ()
    scored: tuple[int, int] = (0, 0)

    @property
    def num_scored(self) -> int:
        return self.scored[1] - self.scored[0]

    @property
    def num_drawn(self) -> int:
        """Rows of logits from which tokens are drawn, one for each draft token included."""
        return 1 + len(self.draft_tokens) if self.is_sampled else 0

    @property
    def num_rows(self) -> int:
        """Rows of the step that this chunk takes, draft tokens included."""
        return self.stop - self.start + len(self.draft_tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. Comparable with `==`, printable, recordable as JSON (`dataclasses.asdict`).

    number     steps planned so far, this one included
    chunks     the positions to compute, in running order
    admitted   sequences that begin or resume with this step
    preempted  sequences that lost their blocks to make room
    """

    number: int
    chunks: tuple[Chunk, ...]
    admitted: tuple[RequestId, ...]
    preempted: tuple[RequestId, ...]

    @property
    def num_rows(self) -> int:
        return sum(chunk.num_rows for chunk in self.chunks)

    def summary(self) -> dict[str, object]:
        """Return the plan for a log line: the number of draft tokens in place of these, which are a caller's text."""
        chunks = [{**dataclasses.asdict(chunk), "draft_tokens": len(chunk.draft_tokens)} for chunk in self.chunks]
        return {**dataclasses.asdict(self), "chunks": chunks}
