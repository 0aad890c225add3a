"""Uploads: in parts, side by side, abandoned; and what a hostile client sends."""

import asyncio
import errno
import fcntl
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.ingest.checking import CheckedFiles, CheckJob, check_files
from manylora.adapters.sources.source import TEXT_FILES
from manylora.adapters.sources.upload_folders import Registry
from manylora.bench.faults.adapter_files import Files
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.process.janitor import Janitor
from manylora.control.registry import aliases
from manylora.control.registry import check_queue as turns_module
from manylora.control.registry import intake as intake_module
from manylora.control.registry import upload_files as upload_files_module
from manylora.control.registry import uploads as uploads_module
from manylora.control.registry.intake import Intake
from manylora.control.registry.upload_files import ByteRange
from manylora.control.registry.uploads import FOLDER, UPLOAD_TTL_MS, Uploads
from manylora.control.storage.database import Database
from manylora.errors import AdapterStorageUnavailable, ControlUnavailable, ResourceNotFound
from tests.conftest import long
from tests.control.plane import Plane, Scenario, in_plane
from tests.control.uploading import ATTENTION, PLAIN, SEEDS, base_settings, begin, complete, new_repo, put, upload
from tests.models.tiny_tokenizers import save_byte_level

IN_PROCESSES = {"test_seeds_of_every_kind_are_taken"}
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


def run(url: URL, folder: Path, scenario: Scenario, **settings: Any) -> None:  # settings of several types
    in_plane(url, folder, scenario, settings=base_settings(folder, **settings))


def open_uploads(plane: Plane) -> list[str]:
    root = plane.control.registry_dir / FOLDER
    return sorted(folder.name for place in root.iterdir() for folder in place.iterdir())


@pytest.fixture(autouse=True)
def checks(request: pytest.FixtureRequest) -> None:
    """Check the files in a thread, but where the process of a check is part of the subject."""
    is_apart = request.node.originalname in IN_PROCESSES or "processes" in request.node.name
    if not is_apart or "postgresql" in request.node.name:
        request.getfixturevalue("checks_in_process")


def test_text_files_are_part_of_a_version(url: URL, tmp_path: Path) -> None:
    texts = {
        "chat_template.jinja": b"{{ messages[0].content }}",
        "generation_config.json": b'{"stop_strings": ["END"]}',
    }

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        plain = (await upload(plane, key, "triage")).json()
        own = (await upload(plane, key, "triage", texts=texts)).json()
        assert own["bytes"] == plain["bytes"] + sum(map(len, texts.values()))
        assert own["sha256"] == plain["sha256"]  # of the weights
        other = await upload(plane, key, "triage", texts={"chat_template.jinja": b"another"})
        assert [plain["tag"], own["tag"], other.json()["tag"]] == [1, 2, 3]
        reply = await plane.call("GET", "/v2/repos/triage/version/2/download", key=key)
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {
                CONFIG: PLAIN.config,
                WEIGHTS: PLAIN.weights,
                **texts,
            }

    run(url, tmp_path, scenario)


def test_text_files_that_do_not_fit_the_base_are_refused(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        save_byte_level(tmp_path / "Tiny-Base")
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        tokenizer = json.loads((tmp_path / "Tiny-Base" / "tokenizer.json").read_text())
        tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
        refused = await upload(plane, key, "triage", texts={"tokenizer.json": json.dumps(tokenizer).encode()})
        assert refused.json()["code"] == "adapter_incompatible", refused.text
        assert "the pre-tokenizer in its tokenizer.json differs" in refused.json()["error"]
        begun = await begin(plane, key, "triage")
        large = await put(plane, begun["presignedUrls"]["chat_template.jinja"], b"x" * ((512 << 10) + 1))
        assert (large.status_code, large.json()["code"]) == (413, "adapter_too_large"), large.text

    run(url, tmp_path, scenario)


def test_an_upload_goes_on_where_it_broke_off(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        assert begun["requiredHeaders"] == {}
        assert set(begun["presignedUrls"]) == {CONFIG, WEIGHTS, PICKLED, *TEXT_FILES}
        address, data = begun["presignedUrls"][WEIGHTS], PLAIN.weights

        async def part(start: int, stop: int, last: int | None = None) -> tuple[int, dict[str, Any]]:
            told = f"bytes {start}-{(stop if last is None else last) - 1}/{len(data)}"
            reply = await put(plane, address, data[start:stop], content_range=told)
            return reply.status_code, reply.json()

        assert (await plane.client.head(address)).headers["upload-offset"] == "0"
        assert (await part(0, 1000))[1]["offset"] == 1000
        # Less than told came, as when a connection breaks: what came is kept, and the offset says where to go on.
        assert (await part(1000, 1500, last=2000))[1]["offset"] == 1500
        looked = await plane.client.get(address)
        assert (looked.headers["upload-offset"], looked.json()["offset"]) == ("1500", 1500)
        status, refusal = await part(1600, 1700)
        assert (status, "1500 bytes" in refusal["error"]) == (422, True)
        status, refusal = await part(1500, 1700, last=1600)
        assert (status, "Content-Range" in refusal["error"]) == (422, True)
        assert (await part(1500, len(data)))[1]["offset"] == len(data)
        assert (await put(plane, begun["presignedUrls"][CONFIG], PLAIN.config)).status_code == 200
        assert (await complete(plane, key, begun["uploadToken"])).json()["tag"] == 1
        published = Registry(plane.control.registry_dir).files("acme", "triage", 1)[1]
        assert published.read_bytes() == data
        for wrong in ("bytes 5-4/9", "bytes 0-9/9", "items 0-1/2", "bytes */9"):
            begun = await begin(plane, key, "triage")
            refused = await put(plane, begun["presignedUrls"][WEIGHTS], b"x", content_range=wrong)
            assert refused.status_code == 422, wrong

    run(url, tmp_path, scenario)


def test_what_came_before_a_connection_broke_stays(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        upload_id = begun["uploadToken"].partition(".")[0]
        desk = Uploads(Intake(plane.control))
        facts = desk._facts("acme", upload_id)
        assert facts is not None

        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 700
            raise ConnectionResetError

        assert await desk.write(facts, upload_id, WEIGHTS, ByteRange(), broken()) == 700
        assert desk.received_bytes(facts, upload_id, WEIGHTS) == 700

    run(url, tmp_path, scenario)


def test_uploads_at_once_get_a_version_each(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        replies = await asyncio.gather(*(upload(plane, key, "triage") for _ in range(4)))
        assert sorted(reply.json()["tag"] for reply in replies) == [1, 2, 3, 4]
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == (1, 2, 3, 4)
        begun = await begin(plane, key, "triage")
        for name, data in ((CONFIG, PLAIN.config), (WEIGHTS, PLAIN.weights)):
            await put(plane, begun["presignedUrls"][name], data)
        twice = await asyncio.gather(*(complete(plane, key, begun["uploadToken"]) for _ in range(3)))
        assert sorted(reply.status_code for reply in twice) == [200, 404, 404]
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == (1, 2, 3, 4, 5)
        assert open_uploads(plane) == []

    run(url, tmp_path, scenario)


def with_nan(files: Files) -> Files:
    weights = bytearray(files.weights)
    weights[-4:] = np.float32("nan").tobytes()
    return files.with_weights(bytes(weights))


def other_base() -> Files:
    """One that fits a base with twice the width."""
    header = {
        name: {**entry, "shape": [entry["shape"][0], 64] if "lora_A" in name else [64, entry["shape"][1]]}
        for name, entry in PLAIN.header.items()
        if name != "__metadata__"
    }
    end = 0
    for entry in header.values():
        entry["data_offsets"] = [end, end := end + 4 * entry["shape"][0] * entry["shape"][1]]
    fields = {**PLAIN.fields, "base_model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.1"}
    return PLAIN.with_config(fields).with_header(header, bytes(end))


HOSTILE: dict[str, tuple[Files, int, str, str]] = {
    "truncated": (PLAIN.with_weights(PLAIN.weights[:-7]), 422, "adapter_corrupt", "describes"),
    "empty": (PLAIN.with_weights(b""), 422, "adapter_corrupt", "0 bytes"),
    "not finite": (with_nan(PLAIN), 422, "adapter_corrupt", "not finite"),
    "a pickle": (
        PLAIN.with_weights(b"PK\x03\x04" + b"x" * 50),
        422,
        "adapter_unsafe_format",
        "safetensors",
    ),
    "no config": (PLAIN.with_config(b"{"), 422, "adapter_corrupt", "not JSON"),
    "another kind": (PLAIN.with_config({**PLAIN.fields, "peft_type": "IA3"}), 422, "adapter_unsupported", "IA3"),
    "another base": (other_base(), 422, "adapter_incompatible", "mistralai/Mistral-7B-Instruct-v0.1"),
    "a rank over the server's": (SEEDS["everything"], 413, "adapter_too_large", "rank 8"),
}


FEW = ("another base", "a rank over the server's")


@pytest.mark.parametrize("names", [HOSTILE, FEW, *long(HOSTILE)], ids=["threads", "few-processes", "processes"])
def test_what_is_wrong_never_becomes_a_version(url: URL, tmp_path: Path, names: Iterable[str]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for name in names:
            files, status, code, text = HOSTILE[name]
            refused = await upload(plane, key, "triage", files)
            told = refused.json()
            assert (refused.status_code, told["code"]) == (status, code), (name, told)
            assert text in told["error"], (name, told)
        missing = await begin(plane, key, "triage")
        await put(plane, missing["presignedUrls"][CONFIG], PLAIN.config)
        refused = await complete(plane, key, missing["uploadToken"])
        assert "adapter_model.safetensors is missing" in refused.json()["error"]
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == ()
        assert open_uploads(plane) == []
        assert (await upload(plane, key, "triage")).json()["tag"] == 1

    run(url, tmp_path, scenario, **{"adapters.max_rank": 4})


def test_pickled_weights_alone_are_refused_at_the_end_and_beside_others_left_out(url: URL, tmp_path: Path) -> None:
    """Predibase's SDK sends both files of a folder, and shows the message of no refusal but that of the last step."""

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for others, status in ({CONFIG: PLAIN.config}, 422), ({CONFIG: PLAIN.config, WEIGHTS: PLAIN.weights}, 200):
            begun = await begin(plane, key, "triage")
            for name, data in {PICKLED: b"\x80\x04x", **others}.items():
                assert (await put(plane, begun["presignedUrls"][name], data)).status_code == 200
            assert (await plane.client.head(begun["presignedUrls"][PICKLED])).headers["upload-offset"] == "0"
            done = await complete(plane, key, begun["uploadToken"])
            assert done.status_code == status, done.text
            if status == 422:
                assert done.json()["code"] == "adapter_unsafe_format"
                assert "save_pretrained" in done.json()["error"]
        folder = await plane.call("GET", "/v2/repos/triage/version/1/download", key=key)
        assert PICKLED.encode() not in folder.content

    run(url, tmp_path, scenario)


def test_oversized_files_are_refused_as_they_come(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        pickled = await put(plane, begun["presignedUrls"][PICKLED], b"x" * 5001)
        assert (pickled.status_code, pickled.json()["code"]) == (413, "adapter_too_large")
        address = begun["presignedUrls"][WEIGHTS]
        told = await put(plane, address, b"x" * 5001)
        assert (told.status_code, told.json()["code"]) == (413, "adapter_too_large")

        async def without_end() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 4096

        untold = await plane.client.put(address, content=without_end())
        assert (untold.status_code, "5000" in untold.json()["error"]) == (413, True)
        assert (await plane.client.head(address)).headers["upload-offset"] == "0"
        config = await put(plane, begun["presignedUrls"][CONFIG], b"x" * ((1 << 20) + 1))
        assert config.status_code == 413

    run(url, tmp_path, scenario, **{"adapters.max_bytes": 5000})


def test_an_address_is_good_for_its_file_until_it_expires(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key, foreign = await plane.new_tenant("acme"), await plane.new_tenant("other")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        address, token = begun["presignedUrls"][WEIGHTS], begun["uploadToken"]
        upload_id = token.partition(".")[0]
        later = f"{upload_id[:-1]}{(int(upload_id[-1]) + 1) % 10}"
        for altered in (
            address[:-1] + ("0" if address[-1] != "0" else "1"),
            address.partition("?")[0],
            address.replace(WEIGHTS, CONFIG),
            address.replace(WEIGHTS, "%2e%2e%2fupload.json"),
            address.replace(WEIGHTS, "upload.json"),
            address.replace("/acme/", "/other/"),
            address.replace("/acme/", "/%2e%2e/"),
            address.replace(upload_id, later),
            address + "é",
        ):
            for method in ("PUT", "GET"):
                refused = await plane.client.request(method, altered, content=b"x")
                assert refused.status_code in (403, 404), altered
        assert (await plane.client.head(address)).headers["upload-offset"] == "0"
        for wrong in (token + "0", token.replace(upload_id, later), "x", "", "../../x.y", f"{upload_id}.é"):
            assert (await complete(plane, key, wrong)).status_code == 404, wrong
        assert (await complete(plane, foreign, token)).status_code == 404
        plane.clock.advance(UPLOAD_TTL_MS / 1000)
        expired = await put(plane, address, PLAIN.weights)
        assert (expired.status_code, expired.json()["code"]) == (403, "insufficient_permissions")
        assert (await plane.client.get(address)).status_code == 403
        assert (await complete(plane, key, token)).status_code == 404

    run(url, tmp_path, scenario)


def test_what_is_abandoned_is_cleaned_up_and_bounded(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        for _ in range(uploads_module.MAX_OPEN):
            begun = await begin(plane, key, "triage")
            await put(plane, begun["presignedUrls"][WEIGHTS], b"x" * 10)
        refused = await plane.call("POST", "/v2/adapters/upload", {"repo": "triage"}, key=key)
        assert (refused.status_code, refused.json()["code"]) == (403, "storage_limit_exceeded")
        plane.clock.advance(UPLOAD_TTL_MS / 1000)
        await Janitor(plane.control).round()
        assert open_uploads(plane) == []
        kept = (await begin(plane, key, "triage"))["uploadToken"].partition(".")[0]
        assert open_uploads(plane) == [kept]

    run(url, tmp_path, scenario)


def test_open_uploads_share_the_room_that_their_tenant_has(url: URL, tmp_path: Path) -> None:
    room = len(PLAIN.config) + len(PLAIN.weights) + 100

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme", limits={"adapter_bytes": room})
        await new_repo(plane, key)
        first, second = await begin(plane, key, "triage"), await begin(plane, key, "triage")
        for name, data in ((CONFIG, PLAIN.config), (WEIGHTS, PLAIN.weights)):
            assert (await put(plane, first["presignedUrls"][name], data)).status_code == 200
        address = second["presignedUrls"][WEIGHTS]
        assert (await plane.client.get(address)).json()["maxBytes"] == 100

        async def without_end() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 50

        for content in (b"x" * 101, without_end()):
            refused = await plane.client.put(address, content=content)
            assert (refused.status_code, refused.json()["code"]) == (403, "storage_limit_exceeded")
        assert (await put(plane, address, b"x" * 100)).status_code == 200
        full = await plane.call("POST", "/v2/adapters/upload", {"repo": "triage"}, key=key)
        assert (full.status_code, "(adapter_bytes)" in full.json()["error"]) == (403, True)
        assert (await put(plane, address, b"")).status_code == 200
        assert (await complete(plane, key, first["uploadToken"])).status_code == 200
        assert (await plane.client.get(address)).json()["maxBytes"] == 100

    run(url, tmp_path, scenario)


def test_an_address_ends_with_its_tenant_and_with_its_key(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        made = (await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ["query", "upload"]})).json()
        await new_repo(plane, made["key"])
        address = (await begin(plane, made["key"], "triage"))["presignedUrls"][WEIGHTS]

        async def told(method: str) -> tuple[int, str]:
            reply = await plane.client.request(method, address, content=PLAIN.weights)
            return reply.status_code, reply.json().get("code", "")

        assert await told("PUT") == (200, "")
        going, has_begun = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x" * upload_files_module.WRITE_BYTES
            has_begun.set()
            await going.wait()
            yield b"x" * upload_files_module.WRITE_BYTES

        writing = asyncio.create_task(plane.client.put(address, content=slow()))
        await has_begun.wait()
        await plane.call("POST", "/admin/tenants/acme/suspend")
        plane.clock.advance(uploads_module.RECHECK_S + 1)
        going.set()
        assert (await writing).json()["code"] == "tenant_suspended"
        assert [await told(method) for method in ("PUT", "GET")] == [(403, "tenant_suspended")] * 2
        await plane.call("POST", "/admin/tenants/acme/resume")
        assert await told("PUT") == (200, "")
        await plane.call("DELETE", f"/admin/keys/{made['id']}")
        assert [await told(method) for method in ("PUT", "GET")] == [(401, "invalid_api_key")] * 2

    run(url, tmp_path, scenario)


def test_a_tenant_that_is_suspended_while_its_files_are_checked_gets_no_version(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)

        async def checked(job: CheckJob, timeout_s: float) -> CheckedFiles:
            await plane.call("POST", "/admin/tenants/acme/suspend")
            return await asyncio.to_thread(check_files, job)

        monkeypatch.setattr(intake_module, "check_apart", checked)
        refused = await upload(plane, key, "triage")
        assert (refused.status_code, refused.json()["code"]) == (403, "tenant_suspended")
        assert Registry(plane.control.registry_dir).last_number("acme", "triage") == 0

    run(url, tmp_path, scenario)


def test_a_tenants_checks_wait_for_each_other_and_not_for_anothers(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(plane: Plane) -> None:
        busy, other = await plane.new_tenant("busy"), await plane.new_tenant("other")
        for key in (busy, other):
            await new_repo(plane, key)
        going, has_begun, under_way, most = asyncio.Event(), asyncio.Event(), 0, 0

        async def checked(job: CheckJob, timeout_s: float) -> CheckedFiles:
            nonlocal under_way, most
            if "/busy/" in job.folder:
                under_way += 1
                most = max(most, under_way)
                has_begun.set()
                await going.wait()
                under_way -= 1
            return await asyncio.to_thread(check_files, job)

        monkeypatch.setattr(intake_module, "check_apart", checked)
        waiting = [asyncio.create_task(upload(plane, busy, "triage")) for _ in range(4)]
        await has_begun.wait()
        assert (await upload(plane, other, "triage")).status_code == 200
        monkeypatch.setattr(turns_module, "MAX_OF_ONE", 4)
        while len([name for name in open_uploads(plane) if name.endswith(".claimed")]) < 4:  # noqa: ASYNC110  on the disk
            await asyncio.sleep(0.01)
        begun = await begin(plane, busy, "triage")
        for name, data in ((CONFIG, PLAIN.config), (WEIGHTS, PLAIN.weights)):
            await put(plane, begun["presignedUrls"][name], data)
        refused = await complete(plane, busy, begun["uploadToken"])
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "5"
        going.set()
        assert sorted(reply.json()["tag"] for reply in await asyncio.gather(*waiting)) == [1, 2, 3, 4]
        assert (await complete(plane, busy, begun["uploadToken"])).json()["tag"] == 5
        assert most == 1

    run(url, tmp_path, scenario)


def test_nothing_is_written_to_an_upload_that_was_completed(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        await put(plane, begun["presignedUrls"][CONFIG], PLAIN.config)
        going, has_begun = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield PLAIN.weights
            has_begun.set()
            await going.wait()
            yield b"more than was checked"

        writing = asyncio.create_task(plane.client.put(begun["presignedUrls"][WEIGHTS], content=slow()))
        await has_begun.wait()
        early = await complete(plane, key, begun["uploadToken"])
        assert (early.status_code, early.json()["code"]) == (409, "name_taken")
        second = await put(plane, begun["presignedUrls"][WEIGHTS], b"x")
        assert second.status_code == 409
        going.set()
        assert (await writing).json()["offset"] == len(PLAIN.weights) + 21
        assert (await put(plane, begun["presignedUrls"][WEIGHTS], PLAIN.weights)).status_code == 200
        assert (await complete(plane, key, begun["uploadToken"])).status_code == 200
        late = await put(plane, begun["presignedUrls"][WEIGHTS], b"x")
        assert late.status_code == 403

    run(url, tmp_path, scenario)


def test_who_opened_a_file_before_it_was_completed_cannot_write_it_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upload").mkdir()
    locked = fcntl.flock

    def completed_before_the_lock(descriptor: int, operation: int) -> None:
        (tmp_path / "upload").rename(tmp_path / "published")
        locked(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", completed_before_the_lock)
    with (
        pytest.raises(ResourceNotFound),
        upload_files_module.only_writer(tmp_path / "upload" / WEIGHTS),
    ):
        pass


def test_a_commit_that_fails_leaves_no_files(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        for name, data in ((CONFIG, PLAIN.config), (WEIGHTS, PLAIN.weights)):
            await put(plane, begun["presignedUrls"][name], data)
        files, write = Registry(plane.control.registry_dir), Database.write

        @asynccontextmanager
        async def failing(database: Database) -> AsyncIterator[AsyncConnection]:
            async with write(database) as connection:
                yield connection
                assert files.last_number("acme", "triage") == 1
                raise ControlUnavailable("the database is gone")

        with monkeypatch.context() as patch:
            patch.setattr(Database, "write", failing)
            assert (await complete(plane, key, begun["uploadToken"])).status_code == 503
        assert files.last_number("acme", "triage") == 0
        assert (await upload(plane, key, "triage")).json()["tag"] == 1

    run(url, tmp_path, scenario)


def test_a_full_disk_is_told_and_the_upload_can_go_on(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        begun = await begin(plane, key, "triage")
        await put(plane, begun["presignedUrls"][CONFIG], PLAIN.config)

        def full(descriptor: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:  # a real full disk needs a file system of its own
            patch.setattr(os, "write", full)
            refused = await put(plane, begun["presignedUrls"][WEIGHTS], PLAIN.weights)
        assert (refused.status_code, refused.json()["code"]) == (503, AdapterStorageUnavailable.row.code)
        assert "is full" in refused.json()["error"]
        assert "retry-after" in refused.headers
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "publish", lambda *given: full(0, memoryview(b"")))
            await put(plane, begun["presignedUrls"][WEIGHTS], PLAIN.weights)
            refused = await complete(plane, key, begun["uploadToken"])
        assert refused.status_code == 503
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == ()
        assert (await complete(plane, key, begun["uploadToken"])).json()["tag"] == 1

    run(url, tmp_path, scenario)


def test_an_adapter_without_a_base_here_is_checked_as_far_as_it_can_be(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        assert (await upload(plane, key, "triage", other_base())).json()["baseModel"].startswith("mistralai/")
        for files in (with_nan(PLAIN), PLAIN.with_weights(PLAIN.weights[:-1]), SEEDS["everything"]):
            assert (await upload(plane, key, "triage", files)).status_code in (413, 422)

    settings = {"model.base": str(tmp_path / "nowhere"), "adapters.hub_endpoint": "", "adapters.max_rank": 4}
    in_plane(url, tmp_path, scenario, settings=settings)


def test_seeds_of_every_kind_are_taken(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        replies = [
            await upload(plane, key, "triage", files) for files in (ATTENTION, SEEDS["everything"], SEEDS["ends"])
        ]
        assert [json.loads(reply.text).get("rank") for reply in replies] == [4, 8, 2], [r.text for r in replies]

    run(url, tmp_path, scenario)


def test_an_alias_is_checked_before_a_byte_is_sent_and_comes_with_the_version(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await new_repo(plane, acme)
        for alias in ("9", "", "a..b", "-x", "x" * 65, "a/b"):
            body = {"repo": "triage", "alias": alias}
            refused = await plane.call("POST", "/v2/adapters/upload", body, key=acme)
            assert (refused.status_code, "an alias must be" in refused.json()["error"]) == (422, True), alias
        assert not list((plane.control.registry_dir / ".uploads").glob("*/*"))

        async def bring(alias: str) -> httpx2.Response:
            body = {"repo": "triage", "alias": alias}
            begun = (await plane.call("POST", "/v2/adapters/upload", body, key=acme)).json()
            assert begun["alias"] == alias
            for name, data in (("adapter_config.json", PLAIN.config), ("adapter_model.safetensors", PLAIN.weights)):
                await put(plane, begun["presignedUrls"][name], data)
            return await complete(plane, acme, begun["uploadToken"])

        assert (await bring("prod")).json()["tag"] == 1
        assert (await bring("prod")).json()["tag"] == 2
        shown = (await plane.call("GET", "/v2/repos/triage", key=acme)).json()
        assert shown["aliases"] == {"prod": 2}

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_an_alias_that_cannot_be_set_at_the_end_leaves_no_version(
    url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(plane: Plane) -> None:
        acme = await plane.new_tenant("acme")
        await new_repo(plane, acme)
        await upload(plane, acme, "triage")
        monkeypatch.setattr(aliases, "MAX_ALIASES", 1)
        body = {"repo": "triage", "alias": "prod"}
        begun = (await plane.call("POST", "/v2/adapters/upload", body, key=acme)).json()
        for name, data in (("adapter_config.json", PLAIN.config), ("adapter_model.safetensors", PLAIN.weights)):
            await put(plane, begun["presignedUrls"][name], data)
        await plane.call("PUT", "/v2/repos/triage/aliases/other", {"version": 1}, key=acme)
        refused = await complete(plane, acme, begun["uploadToken"])
        assert (refused.status_code, "at most 1 aliases" in refused.json()["error"]) == (422, True)
        shown = (await plane.call("GET", "/v2/repos/triage", key=acme)).json()
        assert ([each["tag"] for each in shown["versions"]], shown["aliases"]) == ([1], {"other": 1})
        assert Registry(plane.control.registry_dir).last_number("acme", "triage") == 1

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))
