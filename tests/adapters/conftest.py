"""What the tests of the store share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.store_folder import House, two_memories


@pytest.fixture(params=[False, True], ids=["one-memory", "two-memories"])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    """A store on a bank that is host memory, and one on a bank beside a host tier."""
    made = two_memories(tmp_path) if request.param else House(tmp_path)
    yield made
    made.store.close()
