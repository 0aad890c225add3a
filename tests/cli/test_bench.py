"""`manylora bench` on a tiny base: both tables, the result files, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tiny_tokenizers import save_sentencepiece
from tests.support.tiny import make_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_base(tmp_path / "base", vocab_size=400, max_position_embeddings=512)
    return save_sentencepiece(tmp_path / "base")


def bench(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "manylora", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_loads_are_measured_on_the_base_and_on_adapters(base: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    arguments = ("--workload", "single", "--workload", "triage", "--adapters", "4", "--seconds", "1", "--json", result)
    done = bench("--base", base, "--set", "model.kernels=native", *arguments)
    assert done.returncode == 0, done.stderr
    for name in ("single, base", "single, 4 adapters", "triage, base", "triage, 4 adapters"):
        assert name in done.stdout
    record = json.loads(result.read_text(encoding="utf-8"))
    assert record["processor"]
    assert [(row["workload"], row["adapters"]) for row in record["results"]] == [
        (workload, count) for workload in ("single", "triage") for count in (0, 4)
    ]
    for row in record["results"]:
        assert row["figures"]["errors"] == 0
        assert row["figures"]["output_tokens_per_s"] > 0


def test_a_profile_accounts_for_the_whole_step(base: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = bench("--base", base, "--profile", "--adapters", "4", "--set", "model.kernels=native", "--json", result)
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads(result.read_text(encoding="utf-8"))["results"]}
    assert [*steps] == ["1 row", "8 rows", "32 rows", "32 rows, sampled", "32 rows, 4 adapters", "prompt of 256"]
    for name, step in steps.items():
        assert step["steps"] > 0
        assert {"embed", "linear", "attend", "gated_silu"} <= {*step["kernels_ms"]}
        assert ("add_lora" in step["kernels_ms"]) >= ("adapters" in name)
        assert 0 < step["host_ms"] < step["step_p90_ms"]
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workload", "chatter"), "--workload must be one of triage, chat, single, long; given 'chatter'"),
        (("--profile", "--set", "model.kernels=reference"), "this back end has no profile"),
    ],
)
def test_what_cannot_be_measured_is_refused(base: Path, arguments: tuple[str, ...], message: str) -> None:
    done = bench("--base", base, "--adapters", "0", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
