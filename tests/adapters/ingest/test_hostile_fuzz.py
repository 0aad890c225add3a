"""Mutated adapters through the real ingest (figure R1 in small), and the cases that were worth keeping."""

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.adapters.jobs import Ingested
from manylora.bench.faults.adapter_files import Files, seeds
from manylora.bench.faults.fuzz import Fuzzer, name_of
from manylora.bench.faults.mutations import KINDS, mutant
from tests.conftest import long

CASES = [json.loads(line) for line in (Path(__file__).parent / "corpus" / "cases.jsonl").read_text().splitlines()]


@pytest.fixture
def fuzzer(tmp_path: Path) -> Iterator[Fuzzer]:
    made = Fuzzer(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_kept_case_ends_as_it_did(fuzzer: Fuzzer, case: dict[str, str], dtype: str) -> None:
    config, weights = (zlib.decompress(base64.b64decode(case[part])) for part in ("config", "weights"))
    outcome, _ = fuzzer.ingest(Files("case", config, weights), dtype)
    is_of_bfloat16 = "rounding to bfloat16" in case["why"]
    assert name_of(outcome) == ("accepted" if is_of_bfloat16 and dtype == "float32" else case["ends"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_seeds_are_valid(fuzzer: Fuzzer, dtype: str) -> None:
    ends = {files.name: fuzzer.ingest(files, dtype)[0] for files in seeds()}
    assert {name: end for name, end in ends.items() if not isinstance(end, Ingested)} == {}


@pytest.mark.parametrize(("seed", "count"), [(0, 300), *long(*((seed, 1000) for seed in range(6)))])
def test_mutants_are_accepted_or_refused(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    # Nothing changes while a mutant is read, so that no read waits for the file system's next tick.
    monkeypatch.setattr("manylora.adapters.sources.local.TICK_S", 0.0)
    found = fuzzer.run(seed, iter(range(count)))
    assert [failure for failure in found.failures if ": took " not in failure] == []
    assert len(found.outcomes) == len(KINDS) >= 20
    ends = {name for outcomes in found.outcomes.values() for name in outcomes}
    assert {"accepted", "AdapterCorrupt", "AdapterIncompatible", "AdapterTooLarge", "AdapterUnsafeFormat"} <= ends


def test_a_mutant_can_be_made_again_from_its_number() -> None:
    for number in (0, 17, 1234):
        assert mutant(3, number, seeds()) == mutant(3, number, seeds())


def test_what_only_the_catch_all_meets_counts_as_a_failure(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr("manylora.adapters.ingest.process.check_adapter", broken)
    outcome, _ = fuzzer.ingest(seeds()[0])
    assert isinstance(outcome, str)
    assert "catch-all" in outcome
