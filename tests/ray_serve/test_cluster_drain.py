"""Replicas that a fleet on a real Ray cluster gives back during streams."""

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.ray_serve.clusters import ADAPTERS, make_files, running_fleet
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long
LONG_S = 120.0
"""Seconds for the end of a replica on a busy machine, after its streams."""
TOKENS = 3500


@pytest.fixture(scope="module", autouse=True)
def ray_is_here() -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_is_here: None) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    make_files(folder)
    return folder


@pytest.mark.parametrize("mode", ["handle", "direct"])
def test_a_replica_that_is_given_back_ends_its_streams_and_its_counts_reach_the_ledger(folder: Path, mode: str) -> None:
    rules = {"mode": mode, "least_engines": 1, "engines": 2, "most_engines": 2, "calm_s": 3}
    with running_fleet(folder, folder / mode, **{f"ray__{name}": value for name, value in rules.items()}) as fleet:
        streams = [fleet.stream(name, TOKENS) for name in ADAPTERS]
        wait_for(lambda: len(fleet.engines()) < 2 or any(each["is_draining"] for each in fleet.engines()), LONG_S)
        for stream in streams:
            stream.reading.result()
        assert [(stream.ends, stream.error) for stream in streams] == [(["length"], "")] * len(streams)
        wait_for(lambda: fleet.state()["Engine"]["running"] == 1, LONG_S)
        assert all(fleet.text(name) for name in ADAPTERS)
        own = {stream.request_id for stream in streams}
        wait_for(lambda: own <= {*fleet.ledger()})
        counts = [row["completion_tokens"] for row in fleet.rows() if row["request_id"] in own]
        assert counts == [TOKENS] * len(streams)
