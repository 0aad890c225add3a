"""The ingest process in its limits: what one job makes it do harms no other, and nothing outside."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.ingest.confinement import memory_limit_bytes
from manylora.adapters.jobs import Ingested, IngestFailure, IngestJob, IngestSettings, Outcome
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.sources.source import PARTS, TEXT_FILES
from manylora.adapters.tiers.image_folder import job_file
from manylora.config.environment import child_environment
from manylora.errors import AdapterCapacity, AdapterTooLarge
from tests.adapters.adapter_files import TINY, config_bytes, local, save_adapter
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.waiting import wait_for

LARGE_BYTES = 1 << 30


@pytest.fixture
def settings(tmp_path: Path) -> IngestSettings:
    for name in ("disk", "root"):
        (tmp_path / name).mkdir()
    return IngestSettings(
        shape=TINY,
        roots=(str(tmp_path / "root"),),
        folder=str(tmp_path / "disk"),
        dtype="bfloat16",
        max_rank=64,
        max_bytes=2 * LARGE_BYTES,
        parallel_loads=4,
        memory_bytes=16 << 20,
    )


@pytest.fixture
def ingest(settings: IngestSettings) -> Iterator[ProcessIngest]:
    process = ProcessIngest(settings)
    yield process
    process.close()


def ended(ingest: ProcessIngest, root: Path, refs: list[AdapterRef]) -> dict[str, Outcome]:
    source = LocalSource((root,))
    for number, ref in enumerate(refs):
        (root.parent / "disk" / job_file(number)).touch()  # as the disk tier makes it
        ingest.submit(IngestJob(number, ref, source.locate(ref).stamp, f"name{number}"))
    outcomes: dict[str, Outcome] = {}

    def are_all_here() -> bool:
        outcomes.update({refs[outcome.number].id: outcome for outcome in ingest.poll()})
        return len(outcomes) == len(refs)

    wait_for(are_all_here)
    return outcomes


def save_large(folder: Path) -> None:
    """A file of a gigabyte that takes no place on disk, and is all zeros."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(config_bytes())
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.truncate(LARGE_BYTES)


def test_a_job_that_takes_too_much_memory_fails_alone(
    ingest: ProcessIngest, settings: IngestSettings, tmp_path: Path
) -> None:
    assert memory_limit_bytes(settings) < LARGE_BYTES
    root, pid = tmp_path / "root", ingest.pid
    save_large(root / "large")
    for number in range(8):
        save_adapter(root / f"a{number}", seed=number)
    names = [*(f"a{number}" for number in range(4)), "large", *(f"a{number}" for number in range(4, 8))]
    outcomes = ended(ingest, root, [local(name) for name in names])
    large = outcomes.pop("large")
    assert isinstance(large, IngestFailure)
    assert isinstance(large.error, AdapterTooLarge | AdapterCapacity)
    assert all(isinstance(outcome, Ingested) for outcome in outcomes.values())
    alone = ended(ingest, root, [local("large")])["large"]
    assert isinstance(alone, IngestFailure)
    assert isinstance(alone.error, AdapterTooLarge)
    assert "adapters.ingest_bytes" in alone.error.message
    assert (ingest.pid, ingest.restarts) == (pid, 0)


def test_the_process_has_limits_and_gains_no_rights(
    ingest: ProcessIngest, settings: IngestSettings, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "root" / "a")
    ended(ingest, tmp_path / "root", [local("a")])  # it has read its settings
    limits = {
        name: resource.prlimit(ingest.pid, getattr(resource, f"RLIMIT_{name}"))[0]
        for name in ("CORE", "FSIZE", "NOFILE", "DATA")
    }
    assert limits["CORE"] == 0
    assert settings.max_bytes < limits["FSIZE"] < 16 * settings.max_bytes
    assert limits["NOFILE"] <= 16 * settings.parallel_loads + 256
    assert limits["DATA"] == memory_limit_bytes(settings)
    status = Path(f"/proc/{ingest.pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


OPENED = """
import json, sys
from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.tiers.image_folder import job_file, job_text_file
from manylora.adapters.jobs import IngestJob, IngestSettings
from manylora.adapters.sources.local import LocalSource
from manylora.adapter_ref import AdapterRef, SourceName
from pathlib import Path
settings = IngestSettings.from_json(json.loads(sys.argv[1]))
root = settings.roots[0]
ref = AdapterRef(SourceName.LOCAL, "a")
watched = ("open", "import", "exec", "compile", "os.system", "subprocess.Popen", "pickle.find_class", "socket.connect")
def watch(event, arguments):
    if event in watched and any(root in str(part) for part in arguments):
        print(event, arguments[0], flush=True)
ingest = InlineIngest(settings)
for file in (job_file(0), job_text_file(0)):
    (Path(settings.folder) / file).touch()
source = LocalSource((Path(root),))
sys.addaudithook(watch)
ingest.submit(IngestJob(0, ref, source.locate(ref).stamp, "name"))
[outcome] = ingest.poll()
print("outcome", type(outcome).__name__)
"""


def test_of_an_adapter_only_the_named_files_are_opened(settings: IngestSettings, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_byte_level(base)
    settings = replace(settings, base_dir=str(base))
    folder = save_adapter(tmp_path / "root" / "a", auto_mapping={"base_model_class": "Evil", "parent_library": "evil"})
    poison = "import os; os.abort()\n"
    for name in ("evil.py", "modeling_evil.py", "__init__.py", "sitecustomize.py", "conftest.py", "setup.py"):
        (folder / name).write_text(poison)
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Evil"}}')
    (folder / "chat_template.jinja").write_text("{% for _ in range(10**9) %}{% endfor %}")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nabort\n(tR.")
    (folder / "training_args.bin").write_bytes(b"\x80\x04cos\nabort\n(tR.")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Evil"}}')
    os.mkfifo(folder / "vocab.json")  # opening it would never end
    os.mkfifo(folder / "tokenizer.model")
    arguments = [sys.executable, "-c", OPENED, json.dumps(settings.to_json())]
    run = subprocess.run(arguments, env=child_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    *events, outcome = run.stdout.splitlines()
    assert outcome == "outcome Ingested"
    assert sorted(events) == sorted(f"open {folder / name}" for name in (*PARTS, *TEXT_FILES))
