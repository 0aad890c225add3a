"""Fetch, check and pack one adapter: the work of the ingest process (`python -m manylora.adapters.ingest`).

The process reads one JSON line with its settings, then one line a job, and answers each job with one line. It imports
no torch, runs at low priority, and ends when its standard input does.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from manylora.adapter_ref import SourceName
from manylora.adapters.checkpoint import CheckedAdapter, Limits, PackedAdapter, check_adapter, pack_adapter
from manylora.adapters.image import NAME_SUFFIX, TEMPORARY_SUFFIX, ImageFacts, image_name, write_image
from manylora.adapters.jobs import Ingested, IngestFailure, IngestJob, IngestSettings, outcome_to_json
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources import LocalSource, Source
from manylora.clock import Clock, SystemClock
from manylora.errors import AdapterReferenceInvalid, ManyloraError

NICENESS = 10


class InlineIngest:
    """Does each job at once in the caller's thread: for tests and for tools."""

    def __init__(self, settings: IngestSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._ended: list[Ingested | IngestFailure] = []

    def submit(self, job: IngestJob) -> None:
        self._ended.append(run_job(job, self._settings, self._clock))

    def abandon(self, number: int) -> None:
        self._ended = [outcome for outcome in self._ended if outcome.number != number]

    def poll(self) -> list[Ingested | IngestFailure]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self._ended.clear()


def open_source(name: SourceName, settings: IngestSettings) -> Source:
    """The source a job names. Raises `AdapterReferenceInvalid` for one that is not built."""
    if name is not SourceName.LOCAL:
        raise AdapterReferenceInvalid(f"`adapter_source` must be one of local. Given: {name}")
    return LocalSource(tuple(Path(root) for root in settings.roots))


def run_job(job: IngestJob, settings: IngestSettings, clock: Clock) -> Ingested | IngestFailure:
    """Do one job from fetch to rename. Never raises: what is not foreseen becomes `AdapterCorrupt`."""
    try:
        return _ingest(job, settings, clock)
    except ManyloraError as error:
        return IngestFailure(job.number, error)
    except OSError as error:
        refuse = Refusals(job.ref.id, job.ref.source, settings.shape.name)
        return IngestFailure(job.number, refuse.unavailable(f"{type(error).__name__}: {error.strerror}"))
    except Exception as error:  # the edge of hostile input: whatever a file provokes is that file's failure
        refuse = Refusals(job.ref.id, job.ref.source, settings.shape.name)
        return IngestFailure(job.number, refuse.corrupt(f"unexpected {type(error).__name__}"))


def _ingest(job: IngestJob, settings: IngestSettings, clock: Clock) -> Ingested:
    refuse = Refusals(job.ref.id, job.ref.source, settings.shape.name)
    stages = _Stages(clock)
    files = open_source(job.ref.source, settings).fetch(job.ref, job.stamp, settings.max_bytes)
    stages.end("fetch")
    limits = Limits(settings.max_rank, settings.max_bytes)
    checked = check_adapter(files.config, files.weights, settings.shape, limits, refuse)
    stages.end("check")
    packed = pack_adapter(checked, settings.shape, settings.dtype, refuse)
    stages.end("pack")
    facts = _keep(packed, job, Path(settings.folder))
    stages.end("write")
    warnings = tuple(_warnings(checked, packed, settings.shape.name))
    return Ingested(job.number, facts, packed.num_rows, warnings, stages.stage_ms)


def _warnings(checked: CheckedAdapter, packed: PackedAdapter, base: str) -> Iterator[str]:
    """What is allowed, but probably not meant."""
    if packed.changes_nothing:
        yield "every B is zero: it would change nothing"
    trained_on = checked.rule.base_model_name.rstrip("/").rsplit("/", 1)[-1]
    if trained_on and trained_on.lower() != base.lower():
        yield f"it was trained on {trained_on}, by its own words, and is served on {base}"


def _keep(packed: PackedAdapter, job: IngestJob, folder: Path) -> ImageFacts:
    """Put the image and the version's name into the disk tier's folder; each appears whole or not at all."""
    target = folder / image_name(packed.digest, packed.dtype)
    temporary = folder / f"{job.number}{TEMPORARY_SUFFIX}"
    try:
        facts = write_image(temporary, digest=packed.digest, dtype=packed.dtype, table=packed.table, body=packed.body)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    name = folder / f"{job.name_key}{NAME_SUFFIX}"
    temporary.write_text(target.name, encoding="ascii")
    temporary.replace(name)
    return facts


class _Stages:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = clock.monotonic_s()
        self.stage_ms: dict[str, float] = {}

    def end(self, name: str) -> None:
        now_s = self._clock.monotonic_s()
        self.stage_ms[name] = round((now_s - self._since_s) * 1e3, 3)
        self._since_s = now_s


def main() -> None:
    """Serve jobs from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle; we end with our input
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints does not break the protocol
    settings = IngestSettings.from_json(json.loads(sys.stdin.buffer.readline()))
    jobs: queue.SimpleQueue[IngestJob] = queue.SimpleQueue()
    writing = threading.Lock()  # protects: whole lines in `answers`
    for _ in range(settings.parallel_loads):
        threading.Thread(target=_work, args=(jobs, settings, answers, writing), daemon=True).start()
    for line in sys.stdin.buffer:
        jobs.put(IngestJob.from_json(json.loads(line)))
    os._exit(0)  # a job stuck in a read must not keep us alive


def _work(
    jobs: "queue.SimpleQueue[IngestJob]", settings: IngestSettings, answers: BinaryIO, writing: threading.Lock
) -> None:
    clock = SystemClock()
    while True:
        outcome = run_job(jobs.get(), settings, clock)
        line = json.dumps(outcome_to_json(outcome)).encode() + b"\n"
        with writing:
            answers.write(line)


if __name__ == "__main__":
    main()
