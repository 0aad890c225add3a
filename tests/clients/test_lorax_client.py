"""The `lorax-client` package against a running server."""

import pytest

from tests.clients.conftest import run_client

pytestmark = [pytest.mark.clients, pytest.mark.base, pytest.mark.slow]


def test_lorax_client_works_unchanged(server_url: str, demo_adapter: str) -> None:
    run_client("lorax", "lorax_script.py", server_url, demo_adapter)
