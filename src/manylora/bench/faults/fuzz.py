"""Mutated adapter files through the real ingest: each must end in time, as a packed image or with an `AdapterError`."""

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.jobs import Ingested, IngestFailure, IngestJob, IngestSettings, Outcome
from manylora.adapters.packing.image import HostImage, ImageDamaged, read_image
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.tiers.image_folder import job_file
from manylora.bench.faults.adapter_files import SHAPE, Files, seeds
from manylora.bench.faults.mutations import mutant
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.clock import SystemClock
from manylora.errors import AdapterError

LIMIT_MS = 50.0
MORE_TRIES = 2
"""Repeats of a mutant over the limit; its fastest time counts, since the machine may have been busy."""
MAX_MESSAGE_CHARACTERS = 500
DTYPES = ("bfloat16", "float32")


@dataclass(slots=True)
class Fuzzed:
    """The ends of the mutants. `failures` have number, kind and fault; `times_ms` are those of whole jobs."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)
    slowest: str = ""
    tried_again: int = 0

    def note(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1


class Fuzzer:
    """Ingests files from a folder, which should be in memory: the time is that of fetch, check, pack and write."""

    def __init__(self, folder: Path) -> None:
        (folder / "root").mkdir()
        base = write_tiny_base(folder / "base", SHAPE.vocab)
        self._root = folder / "root"
        self._source = LocalSource((self._root,))
        self._tiers: dict[str, Path] = {}
        self._ingests: dict[str, InlineIngest] = {}
        for dtype in DTYPES:
            self._tiers[dtype] = folder / dtype
            self._tiers[dtype].mkdir()
            self._ingests[dtype] = InlineIngest(_settings(self._root, self._tiers[dtype], dtype, base))
        self._clock = SystemClock()
        self._jobs = 0

    def close(self) -> None:
        for ingest in self._ingests.values():
            ingest.close()

    def run(self, series: int, numbers: Iterator[int]) -> Fuzzed:
        """Ingest the mutants of these numbers and return their ends."""
        found, start = Fuzzed(), seeds()
        self.ingest(start[0])  # imports and set-up must not count as a mutant's time
        gc.freeze()
        for number in numbers:
            kind, files = mutant(series, number, start)
            outcome, time_ms = self.ingest(files, DTYPES[number % 2])
            for _ in range(MORE_TRIES if time_ms > LIMIT_MS else 0):
                found.tried_again += 1
                outcome, again_ms = self.ingest(files, DTYPES[number % 2])
                time_ms = min(time_ms, again_ms)
            if time_ms > max(found.times_ms, default=0.0):
                found.slowest = f"mutant {series}:{number} ({kind})"
            found.times_ms.append(time_ms)
            found.note(kind, name_of(outcome))
            faults = [outcome] if isinstance(outcome, str) else []
            faults += [f"took {time_ms:.0f} ms"] if time_ms > LIMIT_MS else []
            found.failures += [f"mutant {series}:{number} ({kind}): {fault}" for fault in faults]
        return found

    def ingest(self, files: Files, dtype: str = DTYPES[0]) -> "tuple[Ingested | AdapterError | str, float]":
        """Return the proper end of one adapter, or a text with its fault; and the milliseconds it took."""
        files.save(self._root / "a")
        ref = AdapterRef(SourceName.LOCAL, "a")
        self._jobs += 1
        job = IngestJob(self._jobs, ref, self._source.locate(ref).stamp, "name")
        (self._tiers[dtype] / job_file(job.number)).touch()  # as the disk tier makes it
        begun_s = self._clock.monotonic_s()
        try:
            self._ingests[dtype].submit(job)
        except BaseException as error:
            return f"raised {error!r}", 0.0
        time_ms = 1e3 * (self._clock.monotonic_s() - begun_s)
        outcomes = self._ingests[dtype].poll()
        try:
            return self._judge(files, outcomes, dtype), time_ms
        finally:
            for left in self._tiers[dtype].iterdir():
                left.unlink()

    def _judge(self, files: Files, outcomes: list[Outcome], dtype: str) -> Ingested | AdapterError | str:
        if len(outcomes) != 1:
            return f"ended {len(outcomes)} times"
        [outcome] = outcomes
        if isinstance(outcome, IngestFailure):
            return _judge_refusal(outcome)
        assert isinstance(outcome, Ingested)  # no other job was submitted
        left = sorted(path.name for path in self._tiers[dtype].iterdir())
        if left != [job_file(outcome.number)]:
            return f"left {left} behind"
        try:
            image = read_image(self._tiers[dtype] / left[0])
        except (ImageDamaged, OSError) as error:
            return f"its image cannot be read: {error!r}"
        return _judge_image(files, image, outcome) or outcome


def name_of(outcome: Ingested | AdapterError | str) -> str:
    if isinstance(outcome, str):
        return "FAILED"
    return "accepted" if isinstance(outcome, Ingested) else type(outcome).__name__


def _settings(root: Path, tier: Path, dtype: str, base: Path) -> IngestSettings:
    return IngestSettings(
        shape=SHAPE,
        folder=str(tier),
        dtype=dtype,
        max_rank=64,
        max_bytes=1 << 24,
        parallel_loads=1,
        roots=(str(root),),
        base_dir=str(base),
    )


def _judge_refusal(outcome: IngestFailure) -> AdapterError | str:
    error = outcome.error
    if not isinstance(error, AdapterError):
        return f"refused by {type(error).__name__}"
    if "unexpected" in error.message:
        return f"met by the catch-all: {error.message}"
    if len(error.message) > MAX_MESSAGE_CHARACTERS or not error.message.isprintable():
        return f"an unfit message: {error.message!r}"
    if error.is_retryable:
        return f"said to be worth another try: {error.message}"
    return error


def _judge_image(files: Files, image: HostImage, outcome: Ingested) -> str:
    """Return the reason against accepting this file; empty: there is none."""
    if image.digest != outcome.digest or image.num_rows != outcome.num_rows:
        return f"its image holds {image.num_rows} rows of {image.digest}"
    if not np.isfinite(_numbers(image)).all():
        return "its image holds numbers that are not finite"
    try:
        deserialize(files.weights)  # type: ignore[no-untyped-call]  # it has no types
    except SafetensorError as error:
        return f"accepted what the safetensors library refuses: {error}"
    return ""


def _numbers(image: HostImage) -> "np.ndarray[Any, np.dtype[np.float32]]":
    with memoryview(image.body)[: image.num_bytes] as body:
        if image.facts.dtype == "float32":
            return np.frombuffer(bytes(body), dtype="<f4")
        return (np.frombuffer(bytes(body), dtype="<u2").astype(np.uint32) << 16).view(np.float32)
