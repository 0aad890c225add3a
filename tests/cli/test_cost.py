"""`manylora cost`: the published example to the cent, loads of one's own, and what a measurement adds."""

import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from manylora.cli.costs import Hardware, Load, TokenPrice, compare, dollars


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["cost", *words])


def test_the_defaults_are_the_published_example() -> None:
    shown = run().stdout
    for text in ("$0.22", "$6.60", "$19.36", "$580.80", "88×", "880,000"):
        assert text in shown
    fields = json.loads(run("--json").stdout)
    assert fields["serverless_day_usd"] == "$0.22"
    assert fields["serverless_month_usd"] == "$6.60"
    assert fields["dedicated_day_usd"] == "$19.36"
    assert fields["dedicated_month_usd"] == "$580.80"
    assert fields["ratio"] == 88.0


def test_at_the_break_even_both_cost_the_same() -> None:
    load = Load(requests_per_day=880_000, prompt_tokens=100, completion_tokens=10)
    price = TokenPrice(input_nanousd=200, output_nanousd=200)
    machine = Hardware(name="A10G", hourly_nanousd=1_210_000_000, hours_per_day=Fraction(16))
    found = compare(load, price, machine)
    assert found.ratio == Fraction(1)
    assert found.break_even_requests == 880_000


def test_a_free_base_has_no_ratio() -> None:
    fields = json.loads(run("--price", "0", "--json").stdout)
    assert (fields["ratio"], fields["break_even_requests_per_day"]) == (None, None)
    assert run("--price", "0").exit_code == 0


def test_prompt_and_completion_may_cost_differently() -> None:
    fields = json.loads(run("--price", "0.001", "--price-out", "0.01", "--json").stdout)
    assert fields["serverless_day_usd"] == "$2.00"


@pytest.mark.parametrize(
    "words", [("--price", "cheap"), ("--price", "0.0000001"), ("--hourly", "-1"), ("--hours", "25")]
)
def test_what_is_no_price_is_refused(words: tuple[str, str]) -> None:
    result = run(*words)
    assert result.exit_code != 0
    assert "Traceback" not in result.output


def test_a_measurement_says_what_a_machine_carries(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    cases = {"base": {"tokens_per_s_median": 62.8}, "32 adapters": {"tokens_per_s_median": 58.6}}
    file.write_text(json.dumps({"workload": "triage", "results": cases}), encoding="utf-8")
    fields = json.loads(run("--measured", str(file), "--json").stdout)
    assert (fields["measured_requests_per_s"], fields["measured_requests_per_day"]) == (5.86, 337_536)
    assert fields["machine_usd_per_1000_tokens"] == dollars(Fraction(19_360_000_000, 337_536 * 110) * 1000, 6)
    assert "carries 5.9 such requests a second" in run("--measured", str(file)).stdout
    other = run("--measured", str(file), "--tokens-in", "1000")
    assert other.exit_code == 1
    assert "requests of 100 + 10 tokens" in other.stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": {}, "workload": "triage"}'])
def test_what_is_no_measurement_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "measured.json"
    file.write_text(text, encoding="utf-8")
    result = run("--measured", str(file))
    assert result.exit_code == 1
    assert "no measurement" in result.stderr


def test_a_plot_is_drawn_or_what_it_needs_is_said(tmp_path: Path) -> None:
    file = tmp_path / "cost.png"
    result = run("--plot", str(file))
    if importlib.util.find_spec("matplotlib") is None:
        assert result.exit_code == 1
        assert "manylora[bench]" in result.stderr
    else:
        assert file.read_bytes().startswith(b"\x89PNG")
