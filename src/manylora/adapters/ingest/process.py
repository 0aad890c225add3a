"""Fetch, check and pack adapters: the work of the ingest process (`python -m manylora.adapters.ingest.process`).

The process reads one JSON line with its settings, then one line a job, and answers each job with one line; a line with
a number alone gives that job up. It imports no torch, runs at low priority, and ends when its standard input does.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from manylora.adapter_ref import AdapterRef, SourceName, source_of
from manylora.adapters.ingest.confinement import confine
from manylora.adapters.ingest.reporting import merged_report, report_of, with_text
from manylora.adapters.jobs import (
    Found,
    Ingested,
    IngestFailure,
    IngestJob,
    IngestSettings,
    Job,
    LocateJob,
    Outcome,
    job_from_json,
    outcome_to_json,
)
from manylora.adapters.packing.base_weights import BaseWeights
from manylora.adapters.packing.image import ImageFacts, write_image
from manylora.adapters.packing.pack import PackedAdapter, pack_adapter, pack_merged
from manylora.adapters.peft.checkpoint import AdapterLimits, CheckedAdapter, check_adapter
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.download import together
from manylora.adapters.sources.hub import HubSource
from manylora.adapters.sources.object_storage import ObjectSource
from manylora.adapters.sources.source import FetchedFiles, RemoteSource
from manylora.adapters.sources.upload_folders import folder_sources
from manylora.adapters.sources.uploads import RemoteUploads
from manylora.adapters.text.base_text import BaseText
from manylora.adapters.text.labels import LABELS_FILE, read_labels
from manylora.adapters.text.text_files import merged_text, read_adapter_text
from manylora.adapters.tiers.image_folder import job_file, job_text_file, storage_unavailable
from manylora.clock import Clock, SystemClock
from manylora.errors import AdapterCapacity, AdapterLoadTimeout, AdapterReferenceInvalid, ManyloraError
from manylora.models.text.adapter_text import AdapterText, text_digest
from manylora.models.text.token_files import TOKENIZER_FILE
from manylora.system.log_lines import configure_logs

NICENESS = 19  # at 10, a step of 256 rows took 1.6 times as long while adapters were packed
LOCATE_TIMEOUT_S = 20.0
MAX_LINE_BYTES = 1 << 20


class InlineIngest:
    """An ingest that does each job at once in the caller's thread, for tests and tools."""

    def __init__(self, settings: IngestSettings, clock: Clock | None = None) -> None:
        self._worker = IngestWorker(settings, clock or SystemClock())
        self._ended: list[Outcome] = []

    def submit(self, job: Job) -> None:
        self._ended.append(asyncio.run(self._worker.run(job)))

    def abandon(self, number: int) -> None:
        self._ended = [outcome for outcome in self._ended if outcome.number != number]

    @property
    def is_busy(self) -> bool:
        return bool(self._ended)

    def poll(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self._ended.clear()
        self._worker.close()


def remote_sources(settings: IngestSettings) -> dict[SourceName, RemoteSource]:
    """Return the remote sources that are switched on."""
    sources = remote_sources_of(
        settings.stores, settings.hub_endpoint, settings.redirect_hosts, session=settings.session
    )
    if settings.registry_url:
        sources[SourceName.PBASE] = RemoteUploads(settings.registry_url, settings.registry_token)
    return sources


def remote_sources_of(
    stores: Sequence[str], hub_endpoint: str, redirect_hosts: Sequence[str], *, session: str = ""
) -> dict[SourceName, RemoteSource]:
    """Return the remote sources of three settings of `adapters`; `session` as in `IngestSettings`."""
    sources: dict[SourceName, RemoteSource] = {}
    for name in (SourceName.S3, SourceName.GS, SourceName.AZ, SourceName.HTTPS):
        if places := [place for place in stores if source_of(place) is name]:
            sources[name] = ObjectSource(places, redirect_hosts, session=session)
    if hub_endpoint:
        sources[SourceName.HUB] = HubSource(hub_endpoint, redirect_hosts)
    return sources


class IngestWorker:
    """Does jobs side by side: fetches wait for the network, checks and packs for a processor."""

    def __init__(self, settings: IngestSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._folders = folder_sources(settings.roots, settings.registry_dir, settings.pushed_dir)
        # Each kind of wait has threads of its own, so that none of them holds up another kind.
        self._reads = ThreadPoolExecutor(settings.parallel_loads, thread_name_prefix="read")
        self._packs = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pack")
        self._remote = remote_sources(settings)
        self._texts = TextReader(settings.base_dir)
        self._num_running = 0

    def close(self) -> None:
        """Take no more jobs."""
        for threads in (self._reads, self._packs):
            threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, job: Job) -> Outcome:
        """Do one job to its end. Never raises: an unforeseen exception becomes `AdapterCorrupt`."""
        refuse = Refusals(job.ref.id, job.ref.source, self._settings.shape.name)
        self._num_running += 1
        try:
            if isinstance(job, LocateJob):
                return await self._locate(job, refuse)
            return await self._ingest(job, refuse)
        except ManyloraError as error:
            return IngestFailure(job.number, error)
        except OSError as error:
            return IngestFailure(job.number, refuse.unavailable(f"{type(error).__name__}: {error.strerror}"))
        except MemoryError:
            # Alone it can never fit; beside others it may, once they are done.
            is_alone = self._num_running == 1
            refusal = refuse.out_of_memory() if is_alone else AdapterCapacity("Model is overloaded")
            return IngestFailure(job.number, refusal)
        except Exception as error:  # the edge of hostile input: any exception is a failure of the file
            return IngestFailure(job.number, refuse.corrupt(f"unexpected {type(error).__name__}"))
        finally:
            self._num_running -= 1

    async def _locate(self, job: LocateJob, refuse: Refusals) -> Found:
        try:
            async with asyncio.timeout(min(LOCATE_TIMEOUT_S, self._settings.load_timeout_s)):
                return Found(job.number, await self._source(job.ref).locate(job.ref))
        except TimeoutError as error:
            raise refuse.unavailable("it did not answer in time") from error

    async def _ingest(self, job: IngestJob, refuse: Refusals) -> Ingested:
        stages = _Stages(self._clock)
        if job.ref.merge is None:
            files = [await self._fetch(job.ref, job.stamp)]
        else:
            versions = zip(job.ref.merge.members, json.loads(job.stamp), strict=True)
            files = await together(*(self._fetch(member, stamp) for member, stamp in versions))
        stages.end("fetch")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._packs, partial(_pack, job, files, self._settings, refuse, stages, self._texts)
        )

    async def _fetch(self, ref: AdapterRef, stamp: str) -> FetchedFiles:
        limit_bytes = self._settings.max_bytes
        if (folder := self._folders.get(ref.source)) is not None:
            read = partial(folder.fetch, ref, stamp, limit_bytes)
            return await asyncio.get_running_loop().run_in_executor(self._reads, read)
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                return await self._source(ref).fetch(ref, stamp, limit_bytes)
        except TimeoutError as error:
            raise AdapterLoadTimeout(
                f"Adapter '{ref.id}' was not ready within {self._settings.load_timeout_s:g} s"
            ) from error

    def _source(self, ref: AdapterRef) -> RemoteSource:
        source = self._remote.get(ref.source)
        if source is None:
            allowed = ", ".join(sorted({*self._folders, *self._remote}))
            raise AdapterReferenceInvalid(f"`adapter_source` must be one of {allowed}. Given: {ref.source}")
        return source


class TextReader:
    """Reads the text files of one adapter at a time, since a parsed tokenizer.json takes much memory."""

    def __init__(self, base_dir: str) -> None:
        self._folder = Path(base_dir)
        self._base: BaseText | None = None  # read for the first adapter that has text files
        self._checked: dict[str, dict[str, Any]] = {}  # JSON values of several types
        self._lock = Lock()  # protects both fields, and keeps one parsed tokenizer.json in memory at a time

    def read(self, files: FetchedFiles, refuse: Refusals) -> AdapterText:
        """Return the content of one adapter's text files.

        Raises an `AdapterError` that names the file and its fault.
        """
        texts = {name: content for name, content in files.texts.items() if name != LABELS_FILE}
        if not texts:
            return AdapterText()
        with self._lock:
            if self._base is None and not (self._folder / TOKENIZER_FILE).is_file():
                raise refuse.unsupported("a tokenizer, a template or a generation config beside a base without one")
            self._base = self._base or BaseText.read(self._folder)
            return read_adapter_text(texts, self._base, refuse, self._checked)


def _pack(
    job: IngestJob,
    files: Sequence[FetchedFiles],
    settings: IngestSettings,
    refuse: Refusals,
    stages: "_Stages",
    texts: TextReader,
) -> Ingested:
    stages.end("wait")
    shape, merge = settings.shape, job.ref.merge
    limits = AdapterLimits(settings.max_rank, settings.max_bytes, settings.is_strict, settings.harmless_fields)
    refs = [job.ref] if merge is None else merge.members
    checked = [
        check_adapter(own.config, own.weights, shape, limits, Refusals(ref.id, ref.source, shape.name))
        for ref, own in zip(refs, files, strict=True)
    ]
    words = [texts.read(own, Refusals(ref.id, ref.source, shape.name)) for ref, own in zip(refs, files, strict=True)]
    if (head := checked[0].head) is not None:  # a merge has none
        labels, problem = read_labels(files[0].texts, head.num_labels, refuse)
        words[0] = replace(words[0], labels=labels, problem=problem)
    text = merged_text(words).to_bytes()
    stages.end("check")
    if merge is None:
        packed = pack_adapter(checked[0], shape, settings.dtype, refuse, _base_weights(settings, checked[0]))
    else:
        packed = pack_merged(checked, merge.recipe, shape, limits, settings.dtype, refuse)
    stages.end("pack")
    facts = _keep(packed, job, Path(settings.folder))
    _keep_text(text, job, Path(settings.folder))
    stages.end("write")
    reports = [report_of(adapter, shape) for adapter in checked]
    report = reports[0] if merge is None else merged_report(reports)
    if packed.changes_nothing:
        report = report.with_warnings(["every B is zero: it would change nothing"])
    if merge is None:
        report = with_text(report, files[0].texts, words[0], is_forbidden=not settings.allows_templates)
    facts_of_job = report.warnings, stages.stage_ms, report.to_text()
    return Ingested(job.number, facts, packed.num_rows, *facts_of_job, text_digest(text), len(text))


def _base_weights(settings: IngestSettings, adapter: CheckedAdapter) -> BaseWeights | None:
    """Return the base's weights if the adapter cannot be packed without them, else None.

    Reading the headers of the base's files takes longer than a pack.
    """
    if not settings.base_dir or not adapter.extra_features:
        return None
    return BaseWeights(Path(settings.base_dir), is_tied=settings.shape.is_tied)


def _keep(packed: PackedAdapter, job: IngestJob, folder: Path) -> ImageFacts:
    """Write the image into the file that the disk tier has made for this job and takes over afterwards.

    The disk tier has removed the file of an abandoned job. It is not made again, since its bytes would not be counted.
    """
    try:
        return write_image(
            folder / job_file(job.number),
            digest=packed.digest,
            dtype=packed.dtype,
            table=packed.table,
            body=packed.body,
            extras=packed.extras,
            invocation_tokens=packed.invocation_tokens,
            may_create=False,
        )
    except OSError as error:
        raise storage_unavailable(folder, error.strerror) from error


def _keep_text(text: bytes, job: IngestJob, folder: Path) -> None:
    """Write the text into the job's second file, which the disk tier has made if the adapter has text files."""
    if not text:
        return
    try:
        with (folder / job_text_file(job.number)).open("r+b", buffering=0) as file:
            file.write(text)
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_unavailable(folder, error.strerror) from error


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts; this process ends with its input
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library's print must not break the protocol
    configure_logs("ingest")
    asyncio.run(_serve(answers))


async def _serve(answers: BinaryIO) -> None:
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer)
    settings = IngestSettings.from_json(json.loads(await lines.readline()))
    confine(settings)
    worker = IngestWorker(settings, SystemClock())
    running: dict[int, asyncio.Task[None]] = {}

    async def answer(job: Job) -> None:
        try:
            outcome = await worker.run(job)
        finally:
            del running[job.number]
        answers.write(json.dumps(outcome_to_json(outcome)).encode() + b"\n")

    while line := await lines.readline():
        message = json.loads(line)
        if isinstance(message, int):
            if (given_up := running.get(message)) is not None:
                given_up.cancel()
            continue
        job = job_from_json(message)
        running[job.number] = asyncio.create_task(answer(job))
    os._exit(0)  # a job that hangs in a read must not keep the process alive


if __name__ == "__main__":
    main()
