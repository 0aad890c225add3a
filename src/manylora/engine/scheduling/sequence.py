"""The progress of one request: how many of its positions are computed, and in which blocks."""

import numpy as np

from manylora.adapter_state import AdapterHandle
from manylora.engine.events import AdapterUse, PromptScore
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.logits_rules import LogitsRules
from manylora.engine.pooling import PooledRows
from manylora.engine.prompt_lookup import DraftLength, PromptLookup
from manylora.engine.request import Request
from manylora.engine.scheduling.blocks import PrefixKey, joined_key, next_key
from manylora.engine.stopping import StopChecker
from manylora.usage import Counts

MAX_FORCED = 8
"""Tokens of the first draft of a text that a grammar leaves no choice about."""


class Sequence:
    """A request under way.

    Positions, all half-open:  [0, num_prompt) the prompt, [num_prompt, len(tokens)) generated and committed;
    [0, computed) have keys and values in `blocks`; [computed, len(tokens)) is the remaining work, whatever the reason:
    a prompt, the rest of a prompt, the token drawn last, or everything again after a preemption. Draft tokens stand at
    [len(tokens), …) for one step: the accepted ones are committed like any token, the rejected ones are dropped.

    Blocks: `blocks[i]` has positions from i * block_size on. The sequence holds `blocks[released:]`. The blocks before
    them are behind the sliding window: no row reads them again, and their entries mean nothing.
    """

    __slots__ = (
        "_block_ids",
        "active_from",
        "adapter_use",
        "arrival_s",
        "blocks",
        "cached_tokens",
        "charged",
        "computed",
        "first_run_s",
        "forced_length",
        "has_forced_draft",
        "keeps_place",
        "keys",
        "matcher",
        "num_prompt",
        "own_root",
        "placed",
        "pooled",
        "prompt_lookup",
        "published",
        "reached",
        "ready_s",
        "refused_at",
        "released",
        "request",
        "root",
        "rules",
        "scores",
        "stopper",
        "tier_on_arrival",
        "tokens",
    )

    def __init__(self, request: Request, stopper: StopChecker, rules: LogitsRules | None, arrival_s: float) -> None:
        self.request = request
        self.stopper = stopper
        self.rules = rules
        self.arrival_s = arrival_s
        self.matcher: GrammarMatcher | None = None  # set once the request's grammar is compiled
        self.tokens = list(request.tokens)
        self.num_prompt = len(request.tokens)
        self.computed = 0
        self.pooled = None if request.pooling is None else PooledRows(request.pooling)
        self.prompt_lookup = PromptLookup() if request.speculation and self.pooled is None else None
        self.scores: list[PromptScore] = []  # of the prompt's tokens from the second on, if the request wants them
        self.forced_length = DraftLength(MAX_FORCED)
        self.has_forced_draft = False  # the last draft spells what the grammar leaves no choice about
        self.charged = 0  # prompt positions below this are charged to the flow
        self.reached = 0  # prompt positions below this were computed or cached at least once
        self.published = 0  # blocks below this index are in the prefix cache
        self.released = 0  # blocks below this index are given back, or were never held
        self.blocks: list[int] = []
        self._block_ids = np.empty(8, dtype=np.int32)  # a copy of `blocks` in the form that kernels read
        self.keys: list[PrefixKey] = []
        self.root: PrefixKey | None = None  # set once the adapter's version is pinned
        self.own_root: PrefixKey | None = None  # the adapter's root, if it is active later and `root` the base's
        self.active_from: int | None = 0  # first position the adapter applies to; None: no position
        self.placed: AdapterHandle | None = None
        self.adapter_use: AdapterUse | None = None
        self.tier_on_arrival = ""
        self.cached_tokens: int | None = None  # set at the first admission
        self.first_run_s: float | None = None
        self.ready_s = arrival_s  # when its last condition became ready
        self.keeps_place = False  # a batch sequence that no admission of an interactive one preempts
        self.refused_at: int | None = None  # the first step that found no room for its adapter on the device

    @property
    def queue_ms(self) -> float | None:
        """Milliseconds from the arrival to the first step with this sequence; None before that step."""
        return None if self.first_run_s is None else 1e3 * (self.first_run_s - self.arrival_s)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_reusable(self) -> int:
        """Positions that may come from the prefix cache: all but the last one, whose row each step needs.

        Positions whose rows are a part of a pooled result, or score the prompt, must be computed once.
        """
        if self.num_unscored > 0:
            return len(self.scores)
        if self.pooled is None or not self.pooled.pooling.needs_every_row:
            return len(self.tokens) - 1
        return min(len(self.tokens) - 1, self.pooled.num_taken)

    @property
    def num_unscored(self) -> int:
        """Number of positions still to score: the first is `len(scores)`."""
        return 0 if self.request.prompt_logprobs is None else self.num_prompt - 1 - len(self.scores)

    def scored_part(self, count: int, most: int) -> tuple[int, tuple[int, int]]:
        """Return the rows of the next chunk, and the range of its positions to score.

        Args:  count  rows at most, no more than remain;  most  positions to score at most
        """
        first = max(self.computed, len(self.scores))
        last = min(self.computed + count, len(self.scores) + self.num_unscored)
        if first >= last:
            return count, (0, 0)
        if last - first > most:
            last = first + most
            count = last - self.computed
        return count, (first, last)

    @property
    def scored_prompt(self) -> tuple[PromptScore, ...] | None:
        """The scores of the prompt's tokens but the first; None if the request wants none."""
        return None if self.request.prompt_logprobs is None else tuple(self.scores)

    @property
    def counts(self) -> Counts:
        """The usage so far. Each position counts once, however often it was computed."""
        return Counts(
            prompt_tokens=self.num_prompt,
            cached_tokens=self.cached_tokens or 0,
            completion_tokens=self.num_generated,
            computed_tokens=self.reached,
        )

    @property
    def block_ids(self) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
        """`blocks` as (len(blocks),) int32, a view that `add_blocks` may invalidate."""
        return self._block_ids[: len(self.blocks)]

    def add_blocks(self, blocks: list[int]) -> None:
        """Append blocks; the sequence holds one reference to each."""
        start, stop = len(self.blocks), len(self.blocks) + len(blocks)
        if stop > len(self._block_ids):
            grown = np.empty(max(stop, 2 * len(self._block_ids)), dtype=np.int32)
            grown[:start] = self._block_ids[:start]
            self._block_ids = grown
        self._block_ids[start:stop] = blocks
        self.blocks.extend(blocks)

    def resume_at(self, first: int, blocks: list[int], block_size: int) -> None:
        """Take `blocks` for the first ones from index `first` on: their positions, and those before, are computed.

        The sequence has no blocks yet, and holds one reference to each of these.
        """
        self.add_blocks([0] * first)
        self.add_blocks(blocks)
        self.released = first
        self.published = len(self.blocks)
        self.computed = len(self.blocks) * block_size

    def take_blocks_before(self, index: int) -> list[int]:
        """Remove the blocks before `index`, which no later row reads, and return them; the caller releases them."""
        taken = self.blocks[self.released : index]
        self.released = index
        return taken

    def take_blocks_from(self, count: int) -> list[int]:
        """Remove all blocks but the first `count` and return them; the caller releases them."""
        if count >= len(self.blocks):
            return []
        taken, self.blocks = self.blocks[count:], self.blocks[:count]
        return taken

    def draft_tokens(self, most: int) -> tuple[int, ...]:
        """Return a draft of the next tokens, at most `most` and no more than the request's budget can still take.

        Where a grammar leaves one text, the draft spells it; the model may spell it otherwise, so that the draft is
        verified like any other. Elsewhere the draft ends before a token that the grammar forbids.
        """
        self.has_forced_draft = False
        if self.prompt_lookup is None:
            return ()
        # A step draws one token more than it accepts.
        room = self.request.stop.max_new_tokens - self.num_generated - 1
        most = min(most, room)
        if self.matcher is None:
            return self.prompt_lookup.propose(self.tokens, most)
        if most > 0 and (forced := self.matcher.forced(most)):
            self.has_forced_draft = True
            return forced[: self.forced_length.take()]
        draft = self.prompt_lookup.propose(self.tokens, most)
        return draft[: self.matcher.num_valid(draft)]

    def note_draft(self, drafted: int, accepted: int) -> None:
        """Adapt the next draft to the last one: of its `drafted` tokens the first `accepted` were drawn."""
        if self.has_forced_draft:
            self.forced_length.note(drafted, accepted)
        elif self.prompt_lookup is not None:
            self.prompt_lookup.note(drafted, accepted)

    def drop_blocks(self) -> list[int]:
        """Forget every computed position and return the blocks; the caller releases them."""
        dropped, self.blocks = self.blocks[self.released :], []
        self.computed = self.published = self.released = 0
        return dropped

    def forget_version(self) -> None:
        """Forget the pinned adapter version, before any step has run with it."""
        self.placed = None
        self.root = self.own_root = None
        self.active_from = 0
        self.keys = []

    def prefix_key(self, index: int, block_size: int) -> PrefixKey:
        """Return the prefix-cache key of a block, which is full of tokens.

        Complexity: O(tokens up to the block that no earlier call has come to)
        Blocks wholly before the adapter's first active position have the base's keys; the block that contains it and
        all later ones have the adapter's. Raises: ValueError before the root is known.
        """
        if self.root is None:
            raise ValueError("the prefix root is known only after admission")
        while len(self.keys) <= index:
            start = len(self.keys) * block_size
            parent = self.keys[-1] if self.keys else self.root
            if self.own_root is not None and self.active_from in range(start, start + block_size):
                parent = joined_key(parent, self.own_root)
            content = np.array(self.tokens[start : start + block_size], dtype=np.int64)
            self.keys.append(next_key(parent, content))
        return self.keys[index]
