"""The check of one adapter's files in a process of its own, which fetches them first from a remote source.

`python -m manylora.adapters.ingest.checking` reads one JSON line (a `CheckJob`), limits itself, answers with one line,
and ends. A hostile file can harm this process alone. The module imports no torch.
"""

import asyncio
import hashlib
import json
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.ingest.confinement import BASE_BYTES, STACK_BYTES, confine_to
from manylora.adapters.ingest.reporting import report_of, report_without_base, with_text
from manylora.adapters.peft.checkpoint import AdapterLimits, check_adapter
from manylora.adapters.peft.config import LoraRule, read_lora_rule
from manylora.adapters.peft.safetensors_header import HeaderEntry, HeaderInvalid, PickledWeights, read_header
from manylora.adapters.peft.tensor_names import Part, read_name
from manylora.adapters.refusals import Refusals, shown
from manylora.adapters.report import IngestReport
from manylora.adapters.sources.source import CONFIG_FILE, MAX_CONFIG_BYTES, TEXT_FILES, WEIGHTS_FILE, missing_part
from manylora.adapters.text.base_text import MAX_FILE_BYTES, BaseText
from manylora.adapters.text.labels import LABELS_FILE
from manylora.adapters.text.text_files import check_text_size, read_adapter_text
from manylora.config.environment import child_environment
from manylora.errors import AdapterIncompatible, ManyloraError
from manylora.failure import Failure
from manylora.models.text.adapter_text import AdapterText
from manylora.models.text.token_files import TOKENIZER_FILE
from manylora.system.log_lines import configure_logs

NICENESS = 10
OPEN_FILES = 256
NUM_THREADS = 24
"""Threads of the process besides its main one: of the storage library, for name look-ups, and for hashing."""
MEMORY_SLACK = 2
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """The files to check, and the bounds of the check.

    folder      the files' folder; the process writes them there first if `source` is given
    name        the adapter's name in errors
    shape       the base that the adapter must fit; None: the base is unknown, and any shape passes
    is_strict, harmless_fields  `adapters.strict` and `adapters.harmless_fields`
    base_dir    the base's files, with which text files are compared; empty: the base is unknown
    source, id, token  the remote source of the files; an empty source: the files are in `folder`
    """

    folder: str
    name: str
    shape: BaseShape | None
    max_rank: int
    max_bytes: int
    is_strict: bool = False
    harmless_fields: tuple[str, ...] = ()
    base_dir: str = ""
    source: str = ""
    id: str = ""
    token: str = ""
    stores: tuple[str, ...] = ()
    hub_endpoint: str = ""
    redirect_hosts: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "CheckJob":  # JSON values of several types
        shape = fields["shape"] and BaseShape.from_json(fields["shape"])
        lists = {name: tuple(fields[name]) for name in ("stores", "redirect_hosts", "harmless_fields")}
        return cls(**{**fields, **lists, "shape": shape})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFiles:
    """The base by the adapter's own config (or empty), its highest rank, its files' size, its weights' hash.

    report  the ingest report as text (`report.py`)
    """

    base: str
    rank: int
    num_bytes: int
    sha256: str
    report: str = ""


async def check_apart(job: CheckJob, timeout_s: float) -> CheckedFiles:
    """Check an adapter in a child process. Raises the `AdapterError` that names the first fault."""
    refuse = Refusals(job.name, job.source or SourceName.PBASE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "manylora.adapters.ingest.checking"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    try:
        async with asyncio.timeout(timeout_s):
            answer, _ = await process.communicate(json.dumps(asdict(job)).encode() + b"\n")
    except TimeoutError as error:
        raise errors.AdapterLoadTimeout(f"Adapter '{job.name}' was not checked within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answer:
        raise refuse.corrupt("the process that checks it ended while reading it")
    found = json.loads(answer)
    if "error" not in found:
        return CheckedFiles(**found)
    raise Failure.from_json(found).to_error()


def check_files(job: CheckJob) -> CheckedFiles:
    """Check the files in the job's folder, every value of the weights included. Raises an `AdapterError`."""
    refuse = Refusals(job.name, job.source or SourceName.PBASE, job.shape.name if job.shape else "")
    folder = Path(job.folder)
    has_config, has_weights = (folder / CONFIG_FILE).is_file(), (folder / WEIGHTS_FILE).is_file()
    if not has_config or not has_weights:
        raise (
            missing_part(has_config, has_weights, False, refuse)
            if has_config or has_weights
            else refuse.corrupt(f"{CONFIG_FILE} and {WEIGHTS_FILE} are missing")
        )
    if (config_bytes := (folder / CONFIG_FILE).stat().st_size) > MAX_CONFIG_BYTES:
        raise refuse.corrupt(f"{CONFIG_FILE} has {config_bytes} bytes, over {MAX_CONFIG_BYTES}")
    config = (folder / CONFIG_FILE).read_bytes()
    rule = read_lora_rule(config, refuse, job.harmless_fields)
    files, text = _read_texts(folder, job.base_dir, refuse)
    with _mapped(folder / WEIGHTS_FILE) as weights:
        if job.shape is None:
            rank, report = _check_without_base(weights, rule, job, refuse)
        else:
            rank, report = _check_on_base(config, weights, rule, job, job.shape, refuse)
        _check_values(weights, refuse)
        return CheckedFiles(
            base=rule.base_model_name,
            rank=rank,
            num_bytes=len(config) + weights.nbytes + sum(map(len, files.values())),
            sha256=hashlib.sha256(weights).hexdigest(),
            report=(report if text is None else with_text(report, files, text)).to_text(),
        )


def _read_texts(folder: Path, base_dir: str, refuse: Refusals) -> tuple[dict[str, bytes], AdapterText | None]:
    """Return the text files, and their content as an `AdapterText` if the base is known."""
    files: dict[str, bytes] = {}
    for name in TEXT_FILES:
        if (folder / name).is_file():
            if (error := check_text_size(name, (folder / name).stat().st_size, refuse)) is not None:
                raise error
            files[name] = (folder / name).read_bytes()
    if not files or not base_dir or not (Path(base_dir) / TOKENIZER_FILE).is_file():
        return files, None
    texts = {name: content for name, content in files.items() if name != LABELS_FILE}
    return files, read_adapter_text(texts, BaseText.read(Path(base_dir)), refuse)


def _check_on_base(
    config: bytes, weights: memoryview, rule: LoraRule, job: CheckJob, shape: BaseShape, refuse: Refusals
) -> tuple[int, IngestReport]:
    limits = AdapterLimits(job.max_rank, job.max_bytes, job.is_strict, job.harmless_fields)
    try:
        checked = check_adapter(config, weights, shape, limits, refuse)
    except AdapterIncompatible as error:
        if not rule.base_model_name:
            raise
        raise AdapterIncompatible(
            f"{error.message}; by its own words it was trained on `{rule.base_model_name}`"
        ) from error
    return max((module.rank for module in checked.modules), default=0), report_of(checked, shape)


def _check_without_base(
    weights: memoryview, rule: LoraRule, job: CheckJob, refuse: Refusals
) -> tuple[int, IngestReport]:
    """Check an adapter whose base is served elsewhere: names, ranks and bytes. Return the highest rank and a report."""
    if weights.nbytes > job.max_bytes:
        raise refuse.too_large(weights.nbytes, job.max_bytes)
    rank, entries = 0, _header(weights, refuse)
    for name, entry in entries.items():
        known = read_name(name)
        if known is None:
            raise refuse.unsupported(f"a tensor `{shown(name)}`")
        if known[1] is Part.A and entry.shape and known[0][1] >= 0:  # the tensors of all experts show no rank
            rank = max(rank, entry.shape[0])
    if rank > job.max_rank:
        raise refuse.rank_too_large(rank, job.max_rank)
    return rank, report_without_base(rule, len(entries))


def _check_values(weights: memoryview, refuse: Refusals) -> None:
    for name, entry in _header(weights, refuse).items():
        for start in range(entry.start, entry.stop, _BLOCK_BYTES):
            if not _is_finite(weights[start : min(start + _BLOCK_BYTES, entry.stop)], entry.dtype):
                raise refuse.corrupt(f"`{shown(name)}` has values that are not finite (NaN or infinity)")


def _is_finite(raw: memoryview, dtype: str) -> bool:
    if dtype == "F32":
        return bool(np.isfinite(np.frombuffer(raw, dtype="<f4")).all())
    exponent = 0x7F80 if dtype == "BF16" else 0x7C00
    return not ((np.frombuffer(raw, dtype="<u2") & exponent) == exponent).any()


def _header(weights: memoryview, refuse: Refusals) -> dict[str, HeaderEntry]:
    try:
        return read_header(weights)
    except PickledWeights as error:
        raise refuse.unsafe_format() from error
    except HeaderInvalid as error:
        raise refuse.corrupt(f"{WEIGHTS_FILE}: {error}") from error


@contextmanager
def _mapped(file: Path) -> Iterator[memoryview]:
    """Map a file's bytes into memory without copying them."""
    with file.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            yield memoryview(b"")
            return
        # Tensors keep views of the map; the process ends with them, so it is never closed under them.
        yield memoryview(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))


async def _fetch(job: CheckJob) -> None:
    from manylora.adapters.ingest.process import remote_sources_of  # imports the libraries of remote storage

    refuse = Refusals(job.name, job.source)
    source = remote_sources_of(job.stores, job.hub_endpoint, job.redirect_hosts).get(SourceName(job.source))
    if source is None:
        raise errors.AdapterReferenceInvalid(f"the source {job.source} is switched off here")
    ref = AdapterRef(SourceName(job.source), job.id, job.token)
    located = await source.locate(ref)
    if located.weights_bytes > job.max_bytes:
        raise refuse.too_large(located.weights_bytes, job.max_bytes)
    files = await source.fetch(ref, located.stamp, job.max_bytes)
    (Path(job.folder) / CONFIG_FILE).write_bytes(files.config)
    (Path(job.folder) / WEIGHTS_FILE).write_bytes(files.weights)
    for name, data in files.texts.items():
        (Path(job.folder) / name).write_bytes(data)


def _outcome(job: CheckJob) -> dict[str, Any]:  # JSON values of several types
    refuse = Refusals(job.name, job.source or SourceName.PBASE)
    try:
        if job.source:
            asyncio.run(_fetch(job))
        return asdict(check_files(job))
    except ManyloraError as error:
        failure: ManyloraError = error
    except MemoryError:
        failure = refuse.out_of_memory()
    except OSError as error:
        failure = errors.AdapterStorageUnavailable(f"the server's disk cannot take the adapter: {error.strerror}")
    except Exception as error:  # the edge of hostile input: any exception is a failure of the file
        failure = refuse.corrupt(f"unexpected {type(error).__name__}")
    return {**Failure.of(failure).to_json()}


def main() -> None:
    """Do the one job that standard input contains."""
    os.nice(NICENESS)
    answer = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library's print must not break the answer
    configure_logs("upload-check")
    job = CheckJob.from_json(json.loads(sys.stdin.buffer.readline()))
    confine_to(
        file_bytes=max(job.max_bytes, MAX_CONFIG_BYTES, *MAX_FILE_BYTES.values()) if job.source else 0,
        num_files=OPEN_FILES,
        memory_bytes=BASE_BYTES + NUM_THREADS * STACK_BYTES + MEMORY_SLACK * job.max_bytes,
    )
    answer.write(json.dumps(_outcome(job)).encode())
    os._exit(0)  # a thread that still works on a file must not keep the process alive


if __name__ == "__main__":
    main()
