"""The ingest report: what is applied and left out, bounded, kept with the packed image, there after a restart."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from manylora import errors
from manylora.adapters.ingest.reporting import report_of
from manylora.adapters.jobs import Ingested, IngestJob
from manylora.adapters.packing.image import REPORT_SUFFIX, write_image
from manylora.adapters.peft.checkpoint import check_adapter
from manylora.adapters.report import (
    MAX_GROUPS,
    MAX_NAMES,
    MAX_REPORT_BYTES,
    AppliedGroup,
    GenerationPart,
    IngestReport,
    TemplatePart,
    TokensPart,
    report_from_text,
)
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.image_folder import job_file
from manylora.config.groups.adapters import AdaptersConfig
from manylora.ids import Digest
from tests.adapters.adapter_files import (
    HIDDEN,
    LAYERS,
    LIMITS,
    REFUSE,
    TINY,
    VOCAB,
    Tensors,
    as_f32,
    config_bytes,
    local,
    lora_tensors,
    packed,
    safetensors_bytes,
)
from tests.adapters.store_folder import CONFIG, House

QUERY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.lm_head.weight"


def report(tensors: Tensors | None = None, **fields: Any) -> IngestReport:  # any JSON
    weights = safetensors_bytes(tensors or lora_tensors())
    return report_of(check_adapter(config_bytes(**fields), memoryview(weights), TINY, LIMITS, REFUSE), TINY)


def test_each_tensor_is_applied_or_left_out_with_its_reason() -> None:
    found = report(target_modules=["q_proj", "k_proj"], layers_to_transform=[0, 2], alpha_pattern={"k_proj": 2})
    assert (found.num_tensors, found.num_applied, found.num_left_out) == (24, 8, 16)
    both: dict[str, Any] = {"parts": ("lora_A", "lora_B"), "layers": "0, 2", "num_tensors": 4, "rank": 4}
    assert found.applied == (
        AppliedGroup(module="model.layers.*.self_attn.q_proj", scale=2.0, **both),
        AppliedGroup(module="model.layers.*.self_attn.k_proj", scale=0.5, **both),
    )
    assert QUERY in found.left_out_names
    reasons = {(group.tensors.split(".")[-3], group.layers): group.reason for group in found.left_out}
    assert reasons["q_proj", "1"] == "`layers_to_transform` does not name its layer"
    assert reasons["v_proj", "0-2"] == "`target_modules` does not name its module"
    assert sum(group.num_tensors for group in found.left_out) == 16
    assert any("16 tensors that its config does not name are left out" in text for text in found.warnings)


def test_ends_norms_tokens_and_the_base_are_told() -> None:
    tensors = {
        **lora_tensors(),
        HEAD: as_f32(np.ones((VOCAB + 2, HIDDEN))),
        "base_model.model.model.embed_tokens.token_adapter.base_layer.weight": as_f32(np.ones((VOCAB + 2, HIDDEN))),
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": as_f32(np.ones((3, HIDDEN))),
        "base_model.model.model.norm.weight": as_f32(np.ones(HIDDEN)),
    }
    fields = {"trainable_token_indices": [1, 5, 64], "base_model_name_or_path": "org/Other-7b", "peft_version": "0.9"}
    found = report(tensors, **fields, rank_pattern={"nothing": 3})
    assert (found.num_added_rows, found.num_trained_rows, found.num_left_out) == (2, 3, 0)
    parts = {group.module: group.parts for group in found.applied}
    assert parts["lm_head"] == ("weight",)
    assert parts["model.norm"] == ("weight",)
    assert parts["model.embed_tokens"] == ("base_layer.weight", "trainable_tokens_delta")
    assert (found.base.declared, found.base.served, found.base.is_same) == ("org/Other-7b", "tiny", False)
    assert found.peft_version == "0.9"
    assert any("trained on Other-7b" in text for text in found.warnings)
    assert any("`rank_pattern` has keys that govern no module: nothing" in text for text in found.warnings)
    assert found.untouched == tuple(f"model.layers.*.mlp.{name}_proj (0-2)" for name in ("gate", "up", "down"))


def test_a_file_of_thousands_of_names_makes_a_small_report() -> None:
    hostile = {f"\x1b[31m{number:05d}" + "n" * 20: as_f32(np.ones(1)) for number in range(6_000)}
    found = report({**lora_tensors(), **hostile})
    text = found.to_text()
    assert len(text) <= MAX_REPORT_BYTES
    assert text.isprintable()
    assert found.num_left_out == 6_000
    assert (len(found.left_out), found.left_out_rest) == (MAX_GROUPS, 6_000 - MAX_GROUPS)
    assert len(found.left_out_names) == MAX_NAMES
    assert report_from_text(text) == found


def test_a_report_is_read_as_it_was_written_and_anything_else_is_none() -> None:
    full = dataclasses.replace(
        report(),
        tokens=TokensPart(files=("tokenizer.json",), num_added=2, examples=("<x>",)),
        template=TemplatePart(file="chat_template.jinja", is_present=True, is_used=True),
        generation=GenerationPart(eos_token_ids=(2, 7), stop_strings=("###",)),
    )
    assert report_from_text(full.to_text()) == full
    newer = {**full.to_json(), "of_a_later_release": 1, "base": {**full.to_json()["base"], "more": 2}}
    assert report_from_text(json.dumps(newer)) == full
    for text in ("", "[]", "null", "{", '{"applied": [1]}', '{"base": 3}'):
        assert report_from_text(text) is None


# ── kept with the image ──────────────────────────────────────────────────────────────────────────────────────────


def save(house: House, name: str, **fields: Any) -> None:  # any JSON
    folder = house.root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config_bytes(**fields))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(lora_tensors()))


def load(house: House, name: str) -> Digest:
    """The version's digest."""
    placed = house.placed(name)
    assert placed is not None
    house.store.unpin(placed)
    return placed.digest


def told(house: House, name: str) -> IngestReport | None:
    return report_from_text(json.dumps(house.store.info(local(name)).report))


def test_it_is_told_of_an_adapter_and_survives_a_restart(tmp_path: Path) -> None:
    house = House(tmp_path)
    save(house, "a", target_modules=["q_proj"])
    assert told(house, "a") is None
    load(house, "a")
    before = told(house, "a")
    assert before is not None
    assert (before.num_applied, before.num_left_out) == (2 * LAYERS, 6 * LAYERS)
    assert [info.report for info in house.store.infos()] == [None]  # a list has none
    used = house.disk.used_bytes
    files = sum(
        file.stat().st_size for file in house.disk.folder.iterdir() if file.suffix in (".img", ".name", ".report")
    )
    assert used == files
    house.store.close()
    again = House(tmp_path)
    assert again.disk.used_bytes == used
    again.turn("a")
    assert told(again, "a") == before


def test_another_server_of_the_machine_takes_it_over_with_the_image(tmp_path: Path) -> None:
    first = House(tmp_path)
    save(first, "a", exclude_modules=["k_proj"])
    load(first, "a")
    second = House(tmp_path)
    second.turn("a")
    assert told(second, "a") == told(first, "a") is not None


def test_it_goes_with_the_image(tmp_path: Path) -> None:
    house = House(tmp_path)
    save(house, "a")
    digest = load(house, "a")
    assert list(house.disk.folder.glob(f"*{REPORT_SUFFIX}"))
    house.disk.remove(digest)
    assert not list(house.disk.folder.glob(f"*{REPORT_SUFFIX}"))
    assert told(house, "a") is None


def test_an_unreadable_report_is_none(tmp_path: Path) -> None:
    house = House(tmp_path)
    save(house, "a")
    load(house, "a")
    [file] = house.disk.folder.glob(f"*{REPORT_SUFFIX}")
    file.write_text("{", encoding="ascii")
    assert told(house, "a") is None
    file.unlink()
    assert told(house, "a") is None
    house.store.close()
    assert told(House(tmp_path), "a") is None


# ── images of an older release, and other settings ───────────────────────────────────────────────────────────────


def pack_as_before(disk: DiskTier, house: House, name: str, number: int) -> Digest:
    """Leave what a release left that applied every tensor: an image under a name key of its own, and no report."""
    located = LocalSource((house.root,)).locate(local(name))
    image = packed(config_bytes(), safetensors_bytes(lora_tensors()), dtype="bfloat16")
    assert disk.reserve(number, 1 << 16)
    facts = write_image(
        disk.folder / job_file(number), digest=image.digest, dtype="bfloat16", table=image.table, body=image.body
    )
    job = IngestJob(number, local(name), located.stamp, disk.name_key(local(name), located.stamp))
    disk.settle(job, Ingested(number, facts, image.num_rows, (), {}))
    return image.digest


def test_an_image_of_an_older_release_serves_on_only_where_its_version_would_be_packed_alike(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.store.close()
    save(house, "whole")
    save(house, "part", target_modules=["q_proj"])
    fingerprint = TINY.fingerprint
    old = DiskTier(tmp_path / "disk", 1 << 20, dtype="bfloat16", base_fingerprint=fingerprint, rules="[1]")
    before = {name: pack_as_before(old, house, name, number) for number, name in enumerate(("whole", "part"))}
    old.close()
    house = House(tmp_path)
    for name in before:
        house.turn(name)
        assert told(house, name) is None
    assert load(house, "whole") == before["whole"]
    assert load(house, "part") != before["part"]
    found = told(house, "part")
    assert found is not None
    assert found.num_left_out == 6 * LAYERS
    assert told(house, "whole") is not None


def strict(**settings: Any) -> AdaptersConfig:  # values of several types
    return dataclasses.replace(CONFIG, **{"strict": True, **settings})


def test_a_strict_server_refuses_by_the_name_of_a_tensor(tmp_path: Path) -> None:
    house = House(tmp_path)
    save(house, "a", layers_to_transform=[0, 2])
    load(house, "a")
    house.store.close()
    again = House(tmp_path, strict())  # the packed image of before is not served either
    refusal = again.error("a")
    assert isinstance(refusal, errors.AdapterUnsupported)
    assert f"`{QUERY}`" in refusal.message
    assert "`adapters.strict`" in refusal.message
    again.store.close()
    load(House(tmp_path), "a")


def test_a_strict_server_takes_what_peft_itself_writes_twice(tmp_path: Path) -> None:
    tensors = {
        **lora_tensors(),
        HEAD: as_f32(np.ones((VOCAB, HIDDEN))),
        HEAD.replace("weight", "modules_to_save.weight"): as_f32(np.ones((VOCAB, HIDDEN))),
        HEAD.replace("weight", "original_module.weight"): as_f32(np.ones((VOCAB, HIDDEN))),
    }
    limits = dataclasses.replace(LIMITS, is_strict=True)
    weights = memoryview(safetensors_bytes(tensors))
    checked = check_adapter(config_bytes(modules_to_save=["lm_head"]), weights, TINY, limits, REFUSE)
    assert len(checked.sorted_tensors.left_out) == 2


def test_an_unknown_field_passes_while_it_is_listed(tmp_path: Path) -> None:
    listed = dataclasses.replace(CONFIG, harmless_fields=("newest_trick",))
    house = House(tmp_path, listed)
    save(house, "a", newest_trick=1)
    load(house, "a")
    found = told(house, "a")
    assert found is not None
    assert found.harmless_fields == ("newest_trick",)
    house.store.close()
    refusal = House(tmp_path).error("a")
    assert "`newest_trick`" in refusal.message
