"""The server's own registry: numbered versions that appear whole, each tenant's its own, served like any adapter."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName, parse_adapter_name, parse_adapter_ref
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.sources.source import CONFIG_FILE, WEIGHTS_FILE
from manylora.adapters.sources.upload_folders import SUMS_FILE, Registry, RegistrySource
from tests.adapters.adapter_files import config_bytes, lora_tensors, safetensors_bytes

BOTH = frozenset({SourceName.LOCAL, SourceName.PBASE})
LIMIT = 1 << 24


def upload(seed: int) -> tuple[bytes, bytes]:
    return config_bytes(), safetensors_bytes(lora_tensors(seed=seed))


def ref(adapter_id: str, tenant: str = "acme") -> AdapterRef:
    return parse_adapter_ref(adapter_id, "pbase", BOTH, tenant=tenant)


def content(source: RegistrySource, adapter: AdapterRef) -> tuple[bytes, bytes]:
    fetched = source.fetch(adapter, source.locate(adapter).stamp, LIMIT)
    return fetched.config, bytes(fetched.weights)


def test_a_name_is_the_newest_version_and_a_number_that_one(tmp_path: Path) -> None:
    registry, source = Registry(tmp_path), RegistrySource(tmp_path)
    assert [registry.add("acme", "triage", *upload(seed)) for seed in (1, 2)] == [1, 2]
    assert content(source, ref("triage")) == upload(2)
    assert content(source, ref("triage/1")) == upload(1)
    registry.add("acme", "triage", *upload(3))
    assert content(source, ref("triage")) == upload(3)
    assert registry.repositories("acme") == ["triage"]


def test_what_is_archived_or_removed_is_not_found(tmp_path: Path) -> None:
    registry, source = Registry(tmp_path), RegistrySource(tmp_path)
    for seed in (1, 2, 3):
        registry.add("acme", "triage", *upload(seed))
    registry.archive("acme", "triage", 3)
    registry.remove("acme", "triage", 1)
    assert registry.versions("acme", "triage") == [2]
    assert content(source, ref("triage")) == upload(2)
    for gone in ("triage/1", "triage/3", "triage/4", "other"):
        with pytest.raises(errors.AdapterNotFound, match=gone):
            source.locate(ref(gone))
    assert registry.add("acme", "triage", *upload(4)) == 4


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"])
def test_a_version_that_the_disk_has_damaged_is_refused(name: str, tmp_path: Path) -> None:
    registry, source = Registry(tmp_path), RegistrySource(tmp_path)
    registry.add("acme", "triage", *upload(1), {"tokenizer.json": b'{"added_tokens": []}'})
    file = registry.root / "acme" / "triage" / "1" / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(errors.AdapterCorrupt, match=f"{name} is no longer what was uploaded"):
        content(source, ref("triage"))


@pytest.mark.parametrize("note", [None, b"", b"[]"])
def test_a_version_without_a_whole_note_of_its_files_is_served(note: bytes | None, tmp_path: Path) -> None:
    registry, source = Registry(tmp_path), RegistrySource(tmp_path)
    registry.add("acme", "triage", *upload(1))
    file = registry.root / "acme" / "triage" / "1" / SUMS_FILE
    file.unlink() if note is None else file.write_bytes(note)
    assert content(source, ref("triage")) == upload(1)


def test_no_tenant_finds_another_ones(tmp_path: Path) -> None:
    registry, source = Registry(tmp_path), RegistrySource(tmp_path)
    registry.add("acme", "triage", *upload(1))
    with pytest.raises(errors.AdapterNotFound) as own:
        source.locate(ref("triage", tenant="globex"))
    with pytest.raises(errors.AdapterNotFound) as nobody:
        source.locate(ref("triage", tenant="nobody"))
    assert own.value.message == nobody.value.message
    assert registry.repositories("globex") == []


@pytest.mark.parametrize(
    "adapter_id",
    [
        "acme/triage/1",
        "triage/0",
        "triage/x",
        "triage/1/2",
        "../acme",
        "triage@1",
        "a+b",
        "a+b/1",
        "x" * 129,
        "x" * 129 + "/1",
    ],
)
def test_ids_that_mean_nothing_in_a_registry_are_refused(adapter_id: str) -> None:
    with pytest.raises(errors.AdapterReferenceInvalid):
        ref(adapter_id)


def test_a_setting_cannot_name_an_adapter_of_nobody() -> None:
    with pytest.raises(errors.AdapterReferenceInvalid, match="cannot be named without one"):
        parse_adapter_name("pbase://triage", BOTH)


@pytest.mark.parametrize("name", ["triage", "triage/3"])
@pytest.mark.parametrize("scheme", ["pbase://", "pbase:"])
def test_a_setting_names_a_tenants_adapter_with_its_tenant(scheme: str, name: str) -> None:
    assert parse_adapter_name(f"{scheme}acme/{name}", BOTH) == AdapterRef(SourceName.PBASE, name, tenant="acme")
    for wrong in ("acme/triage/prod", "acme/triage/03", "/triage", "a b/triage", "acme/..", "acme/"):
        with pytest.raises(errors.AdapterReferenceInvalid):
            parse_adapter_name(f"{scheme}{wrong}", BOTH)


def test_what_is_no_repository_is_passed_over_in_a_tenants_folder(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add("acme", "triage", *upload(1))
    for stray in (".DS_Store", "lost+found"):
        (tmp_path / "acme" / stray).mkdir()
    assert registry.repositories("acme") == ["triage"]


def test_uploads_at_once_get_different_numbers_and_stay_whole(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(lambda seed: registry.add("acme", "triage", *upload(seed)), range(24)))
    assert sorted(numbers) == list(range(1, 25))
    source = RegistrySource(tmp_path)
    for seed, number in enumerate(numbers):
        assert content(source, ref(f"triage/{number}")) == upload(seed)
    assert not list(tmp_path.glob(".incoming-*"))


def test_every_folder_on_the_way_to_an_upload_is_on_disk_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(re.sub("[0-9a-f]{32}", "*", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Registry(tmp_path).add("acme", "triage", *upload(1))
    incoming = f"{tmp_path}/.incoming-*"
    assert synced[-1] == f"{tmp_path}/acme/triage"  # the version's name comes last
    assert {*synced[:-1]} == {
        str(tmp_path),
        f"{tmp_path}/acme",
        f"{incoming}/{CONFIG_FILE}",
        f"{incoming}/{WEIGHTS_FILE}",
        f"{incoming}/{SUMS_FILE}",
        incoming,
    }


def test_an_upload_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    registry.add("acme", "triage", *upload(1))
    monkeypatch.setattr(Path, "rename", _no_space)
    with pytest.raises(OSError, match="no space"):
        registry.add("acme", "triage", *upload(2))
    monkeypatch.undo()
    assert registry.versions("acme", "triage") == [1]
    assert not list(tmp_path.glob(".incoming-*"))
    assert registry.add("acme", "triage", *upload(3)) == 2


def test_a_folder_that_cannot_be_read_is_the_sources_fault(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "triage").symlink_to("triage")  # a loop
    with pytest.raises(errors.AdapterSourceUnavailable):
        RegistrySource(tmp_path).locate(ref("triage"))


def _no_space(source: Path, target: Path) -> Path:
    raise OSError(f"no space for {target}")


def test_a_link_out_of_the_registry_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    for name, data in zip((CONFIG_FILE, WEIGHTS_FILE), upload(1), strict=True):
        (tmp_path / "outside" / name).write_bytes(data)
    (tmp_path / "registry" / "acme" / "triage").mkdir(parents=True)
    (tmp_path / "registry" / "acme" / "triage" / "1").symlink_to(tmp_path / "outside")
    assert LocalSource((tmp_path,)).list() == ["outside", "registry/acme/triage/1"]  # it is no link out of that root
    assert LocalSource((tmp_path / "registry",)).list() == []
    with pytest.raises(errors.AdapterNotFound):
        RegistrySource(tmp_path / "registry").locate(ref("triage"))


def test_a_request_names_what_its_tenant_has(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add("acme", "triage", *upload(1))
    assert registry.has("acme", "triage")
    assert registry.has("acme", "triage/1")
    for tenant, name in (
        ("acme", "triage/2"),
        ("globex", "triage"),
        ("acme", "../acme/triage"),
        ("acme", "a/b/c"),
        ("", "x"),
    ):
        assert not registry.has(tenant, name)
