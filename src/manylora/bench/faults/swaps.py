"""Random loads, swaps, renames, erasures and evictions of adapters, checked against the tokens of each content.

Each content's tokens are computed once, alone on an engine. Then names come and go on one engine with the prefix cache,
whose bank and disk hold a part of the contents. Every reply must be that of a content its name had.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction
from manylora.adapters.base_shape import module_path
from manylora.bench.faults.adapter_files import LAYERS, SHAPE, Files, from_tensors
from manylora.bench.faults.tiny_base import tiny_engine, write_tiny_base
from manylora.clock import SystemClock
from manylora.engine.engine import Engine
from manylora.engine.events import Finished
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import ManyloraError
from manylora.ids import Flow, RequestId, mint_request_id

NUM_CONTENTS = 14
"""Number of contents: twelve plain adapters, one with DoRA's magnitudes, and an activated one."""
INVOCATION = (40, 41)
NUM_NAMES = 8
NUM_PROMPTS = 6
SALTS = ("one", "two")
NEW_TOKENS = 6
BANK_BYTES, DISK_BYTES, KV_BYTES = 24_000, 200_000, 150_000
"""Bytes of the bank, the disk tier and the KV cache.

The device has room for the largest content or several small ones, the disk for half of the contents.
"""
OPERATORS = {"evict": AdapterAction.EVICT, "erase": AdapterAction.DELETE, "preload": AdapterAction.PRELOAD}
KINDS = ("load", "swap", "swap", "create", "create", "delete", "rename", *OPERATORS)
MIDWAY = 0.25
"""Share of the operations that happen while the requests before them are under way."""
IDLE_S = 0.0005
MAX_STEPS = 200_000

Reply = tuple[int, ...] | str
"""The tokens of a reply, or the name of the error."""
NOT_FOUND, REPLACED = "AdapterNotFound", "AdapterSourceUnavailable"


@dataclass(slots=True)
class Swapped:
    """The number of each act, and every wrong reply."""

    operations: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    cached_tokens: int = 0
    loads: int = 0
    evictions: int = 0


def contents() -> list[Files]:
    """Return adapters of several ranks and module sets, whose weights are large enough to change the base's tokens."""
    attention, every = [0, 1, 2, 3], list(range(7))
    plain = [
        _content(seed, (1, 2, 4, 8)[seed % 4], ([0, 2], attention, [4, 6], every)[seed // 3])
        for seed in range(NUM_CONTENTS - 2)
    ]
    return [
        *plain,
        _content(NUM_CONTENTS - 2, 4, attention, use_dora=True),
        _content(NUM_CONTENTS - 1, 4, every, alora_invocation_tokens=list(INVOCATION)),
    ]


def _content(seed: int, rank: int, projections: Sequence[int], **fields: object) -> Files:
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for projection in projections:
            sizes = SHAPE.projections[projection]
            assert sizes is not None  # this base has them all
            path = f"base_model.model.{module_path((layer, projection))}"
            tensors[f"{path}.lora_A.weight"] = random.normal(0, 0.3, (rank, sizes[1]))
            tensors[f"{path}.lora_B.weight"] = random.normal(0, 0.3, (sizes[0], rank))
            if "use_dora" in fields:
                tensors[f"{path}.lora_magnitude_vector"] = random.uniform(0.5, 1.5, sizes[0])
    return from_tensors(f"content {seed}", tensors, {"r": rank, "lora_alpha": 4 * rank, **fields})


class Oracle:
    """The tokens of every content, and of the base alone, for every prompt."""

    def __init__(self, scratch: Path, base: Path, prompts: Sequence[tuple[int, ...]]) -> None:
        root = scratch / "oracle-root"
        for number, files in enumerate(contents()):
            files.save(root / f"c{number}")
        engine = tiny_engine(base, scratch / "oracle", root, engine__prefix_cache=False, engine__max_running=1)
        try:
            self.tokens = {
                (content, prompt): self._alone(engine, content, tokens)
                for content in (None, *range(NUM_CONTENTS))
                for prompt, tokens in enumerate(prompts)
            }
        finally:
            engine.close()

    def _alone(self, engine: Engine, content: int | None, prompt: tuple[int, ...]) -> Reply:
        request = _request(None if content is None else f"c{content}", prompt, SALTS[0])
        [reply] = _Replies(engine).of([request])
        assert not isinstance(reply, str), reply  # every content is valid
        return reply


class _Replies:
    """Submits requests to an engine and steps it until they have ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clock = SystemClock()
        self.cached_tokens = 0
        self._tokens: dict[RequestId, list[int]] = {}
        self._ends: dict[RequestId, Finished] = {}

    def begin(self, requests: Sequence[Request], steps: int) -> None:
        for request in requests:
            self._tokens[request.id] = []
            self._engine.submit(request)
        for _ in range(steps):
            self._step()

    def of(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the replies of requests that may have begun already."""
        self.begin([request for request in requests if request.id not in self._tokens], 0)
        for _ in range(MAX_STEPS):
            if not self._engine.has_work:
                return [self._reply(request.id) for request in requests]
            self._step()
        raise AssertionError(f"no end after {MAX_STEPS} steps")

    def _step(self) -> None:
        events = self._engine.step()
        for token in events.tokens:
            self._tokens[token.request_id].append(token.token_id)
        self._ends.update({end.request_id: end for end in events.finished})
        if self._engine.is_waiting_for_adapters:
            self._clock.sleep_s(IDLE_S)

    def _reply(self, request: RequestId) -> Reply:
        end, tokens = self._ends.pop(request), tuple(self._tokens.pop(request))
        self.cached_tokens += end.counts.cached_tokens
        return tokens if end.failure is None else end.failure.error


def _request(name: str | None, prompt: tuple[int, ...], salt: str) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow(salt),
        salt=salt,
        tokens=prompt,
        adapter=None if name is None else AdapterRef(SourceName.LOCAL, name),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=NEW_TOKENS, ignore_eos=True),
    )


class Names:
    """The expected folders: the content that each name has now."""

    def __init__(self, root: Path, chance: Random) -> None:
        self._root, self._chance, self._contents = root, chance, contents()
        self.now: dict[str, int] = {}
        self.changes: Counter[str] = Counter()
        """Number of writes to each name's folder. The same content written anew is another version."""
        self._written = 0

    def change(self, engine: Engine) -> str:
        """Do one operation and return its kind."""
        kind = self._chance.choice(KINDS)
        name = self._chance.choice([f"n{number}" for number in range(NUM_NAMES)])
        if kind == "create" or (kind == "swap" and name in self.now):
            self._put(name, self._chance.randrange(NUM_CONTENTS))
        elif kind == "delete":
            self.changes[name] += 1
            shutil.rmtree(self._root / name, ignore_errors=True)
            self.now.pop(name, None)
        elif kind == "rename" and name in self.now:
            self._rename(name, self._chance.choice([f"n{number}" for number in range(NUM_NAMES)]))
        elif kind in OPERATORS:
            with suppress(ManyloraError):  # the adapter does not exist, or is in use
                engine.manage(OPERATORS[kind], AdapterRef(SourceName.LOCAL, name))
            self.changes[name] += kind == "erase"
            if kind == "erase":  # its folder stays, and is found again only with other files in it
                self.now.pop(name, None)
        return kind

    def _put(self, name: str, content: int) -> None:
        """Write a content beside the name's folder and rename it into place, as tools should replace an adapter."""
        self._written += 1
        self.changes[name] += 1
        fresh = self._root.parent / f"fresh-{self._written}"
        self._contents[content].save(fresh)
        if self._chance.random() < 0.5 and name in self.now:  # file by file: another moment at which to look
            for file in sorted(fresh.iterdir()):
                file.replace(self._root / name / file.name)
            fresh.rmdir()
        else:
            shutil.rmtree(self._root / name, ignore_errors=True)
            fresh.rename(self._root / name)
        self.now[name] = content

    def _rename(self, old: str, new: str) -> None:
        if old != new:
            self.changes.update((old, new))
            shutil.rmtree(self._root / new, ignore_errors=True)
            (self._root / old).rename(self._root / new)
            self.now[new] = self.now.pop(old)


class Swapper:
    """One engine, its names, and the oracle."""

    def __init__(self, scratch: Path, series: int = 0) -> None:
        self._chance = Random(series)
        base, root = write_tiny_base(scratch / "tiny"), scratch / "root"
        root.mkdir()
        self._prompts = [self._prompt(5 + 7 * number, number % 2 == 1) for number in range(NUM_PROMPTS)]
        self._oracle = Oracle(scratch, base, self._prompts)
        flags = {"adapters__bank_bytes": BANK_BYTES, "adapters__disk_bytes": DISK_BYTES, "engine__kv_bytes": KV_BYTES}
        self.engine = tiny_engine(base, scratch / "engine", root, adapters__max_bytes=100_000, **flags)
        self._names = Names(root, self._chance)
        self._replies = _Replies(self.engine)

    def close(self) -> None:
        self.engine.close()

    def _prompt(self, length: int, has_invocation: bool) -> tuple[int, ...]:
        tokens = [self._chance.randrange(60, 250) for _ in range(length)]
        return (*tokens[: length // 2], *(INVOCATION if has_invocation else ()), *tokens[length // 2 :])

    @property
    def distinct_replies(self) -> int:
        """Return the number of contents whose tokens differ, the base included."""
        return len(
            {
                tuple(self._oracle.tokens[content, prompt] for prompt in range(NUM_PROMPTS))
                for content in (None, *range(NUM_CONTENTS))
            }
        )

    def run(self, count: int) -> Swapped:
        """Do `count` operations, with requests between them and under way during some."""
        found = Swapped()
        for number in range(count):
            self._turn(number, found)
        self.engine.check()
        stats = self.engine.stats()
        found.cached_tokens, found.loads = self._replies.cached_tokens, stats.adapters.loads
        found.evictions = stats.adapters.evictions
        return found

    def _turn(self, number: int, found: Swapped) -> None:
        chance, is_midway = self._chance, self._chance.random() < MIDWAY
        before, changes = dict(self._names.now), self._names.changes.copy()
        if not is_midway:
            found.operations[self._names.change(self.engine)] += 1
        wanted = [self._wish() for _ in range(chance.choice([1, 1, 2, 3]))]
        requests = [_request(name, self._prompts[prompt], chance.choice(SALTS)) for name, prompt in wanted]
        if is_midway:
            self._replies.begin(requests, chance.randrange(4))
            found.operations[f"{self._names.change(self.engine)} midway"] += 1
        for (name, prompt), reply in zip(wanted, self._replies.of(requests), strict=True):
            # A request under way may see the operation's effect, or not.
            states = [self._names.now] + [before] * is_midway
            allowed = {self._expected(state, name, prompt) for state in states}
            if is_midway and name is not None and self._names.changes[name] != changes[name]:
                allowed |= {REPLACED, NOT_FOUND, "AdapterCorrupt"}
            found.replies[reply if isinstance(reply, str) else "tokens"] += 1
            if reply not in allowed:
                found.mismatches.append(f"operation {number}: {name} prompt {prompt} gave {reply}, not {allowed}")

    def _wish(self) -> tuple[str | None, int]:
        name = None if self._chance.random() < 0.05 else f"n{self._chance.randrange(NUM_NAMES)}"
        return name, self._chance.randrange(NUM_PROMPTS)

    def _expected(self, state: dict[str, int], name: str | None, prompt: int) -> Reply:
        if name is None:
            return self._oracle.tokens[None, prompt]
        return self._oracle.tokens[state[name], prompt] if name in state else NOT_FOUND
