"""Tests of the console: hashes of passwords cost next to nothing, but in the test of what is stored."""

import pytest

from manylora.control.tenants import passwords
from tests.control.conftest import checks_in_process as checks_in_process


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", 2)
    monkeypatch.setattr(passwords, "PARALLEL", 1)
