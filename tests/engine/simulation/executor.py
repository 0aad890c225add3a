"""The simulated executor: it writes each row's owner into its slot of the cache, and reads back what a row sees."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from manylora.engine.execution.sampler import Drawn
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.errors import RankLost
from manylora.ids import RequestId
from tests.engine.simulation import model


@dataclass
class SimulatedKv:
    """Sizes without memory; every block can be discarded."""

    num_blocks: int
    block_size: int
    num_bytes: int = 0

    def discard(self, first: int, stop: int) -> bool:
        return True


class SimulatedExecutor:
    """A simulated `Executor`; `mismatches` says where the cache does not hold what the sequence computed.

    They are noted, not raised: the engine takes what an executor raises for a fault of the step, and goes on.
    """

    def __init__(self, num_blocks: int, block_size: int, sliding_window: int | None = None) -> None:
        self.kv = SimulatedKv(num_blocks, block_size)
        self.block_size = block_size
        self.sliding_window = sliding_window
        self.slots: dict[int, tuple[str, str, int, int]] = {}
        self.mismatches: list[tuple[object, object]] = []
        self.plans: list[Plan] = []
        self.is_closed = False
        self.fail_next = False
        self.lost: RankLost | None = None  # raised by each step
        self.elapse: Callable[[Plan], None] = lambda plan: None  # lets the time of a step pass
        self.poisoned: dict[RequestId, int] = {}  # from so many tokens on its logits are not finite

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
        self.plans.append(plan)
        self.elapse(plan)
        if self.lost is not None:
            raise self.lost
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the step failed")
        for chunk in plan.chunks:
            sequence = running[chunk.request_id]
            tokens = [*sequence.tokens[: chunk.stop], *chunk.draft_tokens]
            for position in range(chunk.start, len(tokens)):
                self.slots[self._slot(sequence, position)] = _written(sequence, position, tokens[position])
            self._read_back(sequence, tokens, chunk.start)
        found: dict[RequestId, tuple[Drawn, ...]] = {}
        for chunk in plan.chunks:
            sequence = running[chunk.request_id]
            answers = [self._score(sequence, position) for position in range(*chunk.scored)]
            if chunk.is_sampled:
                answers += self._draw(sequence, chunk.draft_tokens)
            if answers:
                found[chunk.request_id] = tuple(answers)
        return found

    def start_profile(self) -> None:
        return None

    def release(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def _score(self, sequence: Sequence, position: int) -> Drawn:
        before, token_id = sequence.tokens[: position + 1], sequence.tokens[position + 1]
        is_finite = position < self.poisoned.get(sequence.request.id, position + 1)
        return Drawn(token_id, model.score_of(_identity(sequence), before, token_id), is_finite=is_finite)

    def _draw(self, sequence: Sequence, draft: tuple[int, ...]) -> Iterator[Drawn]:
        tokens, rules = list(sequence.tokens), sequence.rules
        for expected in (*draft, None):
            self._read_back(sequence, tokens, len(tokens) - 1)
            token_id = model.next_token(_identity(sequence), tokens)
            if rules is not None:
                logits = rules.apply(model.logits_of(token_id))
                token_id = int(logits.argmax())
                if np.isneginf(logits[token_id]):
                    yield Drawn(token_id, is_barred=True)
                    return
                rules = rules.after(token_id)
            is_finite = len(tokens) < self.poisoned.get(sequence.request.id, len(tokens) + 1)
            yield Drawn(token_id=token_id, is_finite=is_finite)
            if token_id != expected or not is_finite:
                return
            tokens.append(token_id)

    def _slot(self, sequence: Sequence, position: int) -> int:
        return int(sequence.block_ids[position // self.block_size]) * self.block_size + position % self.block_size

    def _read_back(self, sequence: Sequence, tokens: list[int], row: int) -> None:
        """Compare all that the row at position `row`, and the rows after it, see."""
        first = 0 if self.sliding_window is None else max(0, row - self.sliding_window + 1)
        for position in range(first, len(tokens)):
            is_held = position // self.block_size >= sequence.released
            found = self.slots.get(self._slot(sequence, position)) if is_held else None
            wanted = _written(sequence, position, tokens[position])
            if found != wanted:
                self.mismatches.append((found, wanted))


def _identity(sequence: Sequence) -> str:
    return "" if sequence.placed is None else sequence.placed.digest


def _written(sequence: Sequence, position: int, token: int) -> tuple[str, str, int, int]:
    """What a slot must say, from the request itself: nothing here comes from the cache's own keys."""
    return (_identity(sequence), sequence.request.salt, position, token)
