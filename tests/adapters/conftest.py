"""What the tests of the store share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.store_folder import House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()
