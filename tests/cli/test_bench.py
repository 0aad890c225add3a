"""`manylora bench` on a tiny base: both tables, the result files, and what it refuses."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import long
from tests.forks import forks
from tests.models.tiny_tokenizers import save_sentencepiece
from tests.support.tiny import make_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_base(tmp_path / "base", vocab_size=400, max_position_embeddings=512)
    return save_sentencepiece(tmp_path / "base")


def bench(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return forks().run(["bench", *map(str, arguments)], folder=folder)


@pytest.mark.parametrize("workloads", long((("single",),), (("single", "triage"),)))
def test_loads_are_measured_on_the_base_and_on_adapters(base: Path, tmp_path: Path, workloads: tuple[str, ...]) -> None:
    result = tmp_path / "result.json"
    named = [word for workload in workloads for word in ("--workload", workload)]
    more = ("--adapters", "4", "--seconds", "1", "--json", str(result))
    done = bench(tmp_path, "--base", base, "--set", "model.kernels=native", *named, *more)
    assert done.returncode == 0, done.stderr
    for workload in workloads:
        assert f"{workload}, base" in done.stdout
        assert f"{workload}, 4 adapters" in done.stdout
    record = json.loads(result.read_text(encoding="utf-8"))
    assert record["processor"]
    assert [(row["workload"], row["adapters"]) for row in record["results"]] == [
        (workload, count) for workload in workloads for count in (0, 4)
    ]
    for row in record["results"]:
        assert row["figures"]["errors"] == 0
        assert row["figures"]["output_tokens_per_s"] > 0


@pytest.mark.long  # the steps of six shapes
def test_a_profile_accounts_for_the_whole_step(base: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = bench(
        tmp_path, "--base", base, "--profile", "--adapters", "4", "--set", "model.kernels=native", "--json", result
    )
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
def test_what_cannot_be_measured_is_refused(
    base: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = bench(tmp_path, "--base", base, "--adapters", "0", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
