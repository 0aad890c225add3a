"""A process that has imported everything, for commands whose imports are not what is tested."""

from collections.abc import Iterator

import pytest

from tests.cli.forked_commands import ForkedCommands, forked_commands


@pytest.fixture(scope="session")
def commands() -> Iterator[ForkedCommands]:
    with forked_commands() as forked:
        yield forked
