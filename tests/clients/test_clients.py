"""Two clients: a core of their cases, and all of them in the long runs; `make clients-test` runs every client."""

from pathlib import Path

import pytest

from tests.clients.matrix import CLIENTS, Client, result_of, run_script
from tests.conftest import long, missing
from tests.support.paths import ROOT

LEAST_OF_CORE = 5
"""Cases of a client in every run."""
pytestmark = [pytest.mark.clients, pytest.mark.base, pytest.mark.slow]


@pytest.mark.parametrize("cases", ["core", *long("all")])
@pytest.mark.parametrize("name", ["openai", "lorax"])
def test_a_client_works_unchanged(name: str, cases: str, facts: Path, tmp_path: Path) -> None:
    if not (ROOT / ".venvs" / name).exists():
        missing(f"no environment for the client {name}: `make .venvs/{name}/installed` creates it")
    [client] = [client for client in CLIENTS if client.environment == name]
    result = result_of(client, facts, tmp_path, cases)
    assert result.failed == ()
    assert (result.num_cases > 2 * LEAST_OF_CORE) if cases == "all" else (result.num_cases >= LEAST_OF_CORE)


def test_a_case_that_fails_is_told(facts: Path, tmp_path: Path) -> None:
    """The script of a client for which the server is not there ends with 1 and names each case."""
    lost = tmp_path / "facts.json"
    lost.write_text(facts.read_text(encoding="utf-8").replace("http://127.0.0.1:", "http://127.0.0.1:1"))
    done = run_script(Client("openai", "openai_python.py"), lost, tmp_path)
    assert done.returncode == 1
    assert "failed:" in done.stderr
