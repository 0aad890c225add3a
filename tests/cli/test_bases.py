"""`manylora bases`: one line for each base of the catalog and of the cache, with sizes that its shape gives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from manylora.config.groups.model import DEFAULT_BASE
from manylora.models.fetch.catalog import find
from manylora.models.fetch.known_bases import KNOWN_BASES
from tests.models.parity.published import PARAMETERS

SIZES = {
    "Llama-2-7b": (524_288, 1_048_576, 2_097_152, 4_997_120),
    "Llama-2-13b-chat": (819_200, 1_638_400, 3_276_800, 7_823_360),
    "Llama-2-70b": (327_680, 4_096_000, 8_192_000, 25_886_720),
    "Code-llama-34b-instruct": (196_608, 2_457_600, 4_915_200, 13_615_104),
    "Zephyr-7b-beta": (131_072, 851_968, 1_703_936, 5_242_880),
    "Mixtral-8x7B-Instruct-v0.1": (131_072, 851_968, 1_703_936, 30_015_488),
    DEFAULT_BASE: (23_040, 115_200, 230_400, 610_560),
}
"""Bytes of a position's keys and values, and of a rank on q,v, on q,k,v,o and on all: 2 * layers * (in + out) each."""

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command with an empty cache."""
    monkeypatch.setenv("MANYLORA_MODEL_CACHE_DIR", str(tmp_path))
    return lambda *words: CliRunner().invoke(app, list(words))


def test_every_base_of_the_catalog_is_listed_with_its_facts(invoke: Invoke) -> None:
    lines = json.loads(invoke("bases", "--json").stdout)
    assert [line["name"] for line in lines] == [base.name for base in KNOWN_BASES]
    for line, base in zip(lines, KNOWN_BASES, strict=True):
        assert line["repository"] == base.repository
        assert line["licence"] == base.licence
        assert line["chat_format"] == base.chat_format
        assert line["price_class"] == base.price_class
        assert line["parameters"] == PARAMETERS[base.name]
        assert line["weight_bytes"]["bfloat16"] == 2 * PARAMETERS[base.name]
        assert not line["in_cache"]
        assert tuple(line["unverified"]) == base.unverified


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_shape(name: str, invoke: Invoke) -> None:
    [line] = [line for line in json.loads(invoke("bases", "--json").stdout) if line["name"] == name]
    assert (line["kv_bytes_per_token"], *line["lora_bytes_per_rank"].values()) == SIZES[name]


def test_the_table_has_a_line_for_each_base_and_marks_what_is_to_be_compared(invoke: Invoke) -> None:
    rows = invoke("bases").stdout.splitlines()
    assert [row.split()[0] for row in rows[1:15]] == [base.name for base in KNOWN_BASES]
    doubtful = {base.name for base in KNOWN_BASES if base.unverified}
    assert {row.split()[1].rstrip(":") for row in rows[15:]} == doubtful
    assert next(row for row in rows if row.startswith("Code-llama-70b")).count("4096?") == 1


def test_a_base_in_the_cache_counts_by_its_own_config(invoke: Invoke, tmp_path: Path) -> None:
    known = find("code-llama-70b-instruct")
    assert known is not None
    for name, config in (
        (known.name, {**known.config, "max_position_embeddings": 16384, "rope_theta": 1e6}),
        ("org--own", {**known.config, "num_hidden_layers": 2}),
        ("org--damaged", {"architectures": ["Other"]}),
        (".partial-org--half", known.config),
    ):
        (tmp_path / "bases" / name).mkdir(parents=True)
        (tmp_path / "bases" / name / "config.json").write_text(json.dumps(config))
    lines = {line["name"]: line for line in json.loads(invoke("bases", "--json").stdout)}
    assert len(lines) == len(KNOWN_BASES) + 1
    own = lines[known.name]
    assert (own["context"], own["in_cache"], own["unverified"]) == (16384, True, [])
    assert own["shape_from"] == str(tmp_path / "bases" / known.name / "config.json")
    assert lines["org/own"]["licence"] is None
    assert lines["org/own"]["kv_bytes_per_token"] == 2 * 327_680 // 80


def test_a_damaged_base_of_the_catalog_is_listed_by_the_catalog(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "bases" / DEFAULT_BASE
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    [line] = [line for line in json.loads(invoke("bases", "--json").stdout) if line["name"] == DEFAULT_BASE]
    assert line["shape_from"] == "catalog"
