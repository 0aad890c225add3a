"""The log of an edge in a cluster."""

import pytest

from manylora.ray_serve.edge.announcing import log_announce


def test_the_operators_first_key_reaches_no_log_and_the_command_for_another_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_announce().admin_key("ml-the-first-key")
    assert "manylora control admin-key" in caplog.text
    assert "the-first-key" not in caplog.text
