"""Files of catalogues: each wrong field has its name and line, before a server is asked."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from manylora.cli import app
from manylora.cli.catalogue import yaml_lines
from manylora.cli.catalogue.apply import read_catalogue, yaml_text
from manylora.cli.catalogue.pins import PinStep, pin_steps
from manylora.cli.catalogue.yaml_lines import YamlFile

GOOD = """\
# a comment
tenants:
  acme:
    limits: {requests_per_minute: 5}
    repositories:
      triage:
        aliases:
          prod: {weights: {3: 90, 4: 10}}
prices: {}
"""


def refused(folder: Path, text: str) -> str:
    file = folder / "c.yaml"
    file.write_text(text, encoding="utf-8")
    found = CliRunner().invoke(app, ["apply", "-f", str(file), "--url", "http://127.0.0.1:9"])
    assert found.exit_code == 1
    return found.output + str(found.exception)


def test_keys_are_texts_and_values_keep_their_kind(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD, encoding="utf-8")
    found = read_catalogue(tmp_path / "c.yaml")
    assert found["tenants"]["acme"]["repositories"]["triage"]["aliases"] == {"prod": {"weights": {"3": 90, "4": 10}}}
    assert found["tenants"]["acme"]["limits"] == {"requests_per_minute": 5}


@pytest.mark.parametrize(
    ("before", "after", "line", "named"),
    [
        ("limits:", "limit:", 4, "limit"),
        ("requests_per_minute: 5", "requests_per_hour: 5", 4, "requests_per_hour"),
        ("requests_per_minute: 5", "requests_per_minute: many", 4, "requests_per_minute"),
        ("4: 10", "4: 11", 8, "weights"),
        ("prices: {}", "price: {}", 9, "price"),
        ("prices: {}", "prices: {b: {input_nanousd: 1, output_nanousd: -1}}", 9, "output_nanousd"),
        ("prices: {}", "tenants: {}", 9, "given twice"),
        ("prices: {}", "prices: {", 10, "no YAML"),
        ("prices: {}", "? [a]\n: b", 9, "a key"),
        ("prices: {}", "<<: {prices: {}}", 9, "merges nothing"),
        ("prices: {}", "pins: [!!python/name:os.system x]", 9, "no type"),
        ("prices: {}", "pins: " + "[" * 500_000, 9, "64 deep"),
        ("prices: {}", "pins: &a [*a]", 1, "inside of the value"),
        ("requests_per_minute: 5", "requests_per_minute: 010", 4, "decimal"),
        ("requests_per_minute: 5", "requests_per_minute: 1:30", 4, "decimal"),
        ("requests_per_minute: 5", "requests_per_minute: 1e3", 4, "requests_per_minute"),
        ("requests_per_minute: 5", "requests_per_minute: '5'", 4, "requests_per_minute"),
        ("requests_per_minute: 5", "requests_per_minute: !!bool maybe", 4, "no value"),
        ("requests_per_minute: 5", "requests_per_minutes: 5", 4, "nearest known one is `requests_per_minute`"),
        ("prices: {}", "prices: {b: {input_nanousd: 0.1, output_nanousd: 1}}", 9, "input_nanousd"),
        ("prices: {}", "prices: {b: {input_nanousd: .inf, output_nanousd: 1}}", 9, "finite"),
        ("prices: {}", "prices: {b: {input_nanousd: 9007199254740993.0, output_nanousd: 1}}", 9, "input_nanousd"),
        ("triage:", "tri/age:", 6, "letters"),
    ],
)
def test_a_wrong_field_is_refused_by_name_and_line(
    tmp_path: Path, before: str, after: str, line: int, named: str
) -> None:
    said = refused(tmp_path, GOOD.replace(before, after))
    assert f"line {line}:" in said or line == 1
    assert named in said


def test_a_file_that_is_no_mapping_or_is_missing_is_refused(tmp_path: Path) -> None:
    assert "mapping" in refused(tmp_path, "- a\n")
    found = CliRunner().invoke(app, ["apply", "-f", str(tmp_path / "none.yaml")])
    assert "none.yaml" in found.output + str(found.exception)


def test_pins_are_set_and_end_only_with_a_pruning() -> None:
    present = {"local://a", "pbase://acme/triage/3"}
    assert pin_steps(present, ["a", "hub://org/name"], prune=False) == [PinStep("hub://org/name", is_pinned=True)]
    assert pin_steps(present, ["a"], prune=True) == [PinStep("pbase://acme/triage/3", is_pinned=False)]


def test_a_bomb_of_aliases_is_refused_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_lines, "MAX_VALUES", 10_000)
    levels = "abcdefgh"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in pairwise(levels)
    )
    assert "values" in refused(tmp_path, bomb)


def test_an_alias_repeats_a_value(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "tenants:\n  acme: {limits: &limits {adapters: 3}}\n  globex: {limits: *limits}\n", encoding="utf-8"
    )
    assert read_catalogue(tmp_path / "c.yaml")["tenants"]["globex"] == {"limits": {"adapters": 3}}


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(
        ["010", "1:30", "yes", "null", "~", "<<", "2024-01-01", "1e3", ".inf", "0x10", "*a", "é", "e\u0301"]
    ),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_an_export_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    file = tmp_path_factory.getbasetemp() / "exported.yaml"
    text = yaml_text(values)
    file.write_text(text, encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    assert YamlFile(file).values == values
