"""Requests that schemathesis generates from the OpenAPI document, to a server with a real base and adapters."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from schemathesis.core.result import Ok

from manylora.http.paths import SERVER_ROUTES
from tests.server.app.test_generated_input import try_all
from tests.support.serving import running_server
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.long, pytest.mark.base, pytest.mark.slow]
WINDOW = 64
"""Tokens of a request at most, so that none of the many takes long."""
EXAMPLES = 3
"""Requests to each route with a key, and as many without one."""


@pytest.fixture(params=["open", "keyed"])
def server(
    request: pytest.FixtureRequest, base_dir: Path, demo_root: Path, tmp_path: Path
) -> Iterator[tuple[str, str]]:
    """The address of a server, and the key of a tenant if it asks for keys."""
    log = tmp_path / "log"
    flags = ["--base", str(base_dir), "--adapter-root", str(demo_root), "--max-model-len", str(WINDOW)]
    with running_server(log, *flags, *(["--auth", "on"] if request.param == "keyed" else [])) as url:
        key = ""
        if request.param == "keyed":
            [operator] = re.findall(r"pb_[A-Za-z0-9]{8}_[A-Za-z0-9]+", log.read_text(encoding="utf-8"))
            headers = {"authorization": f"Bearer {operator}"}
            made = httpx2.post(
                f"{url}/admin/tenants", json={"id": "generated"}, headers=headers, timeout=PATIENCE_S
            ).raise_for_status()
            key = made.json()["key"]["key"]
        yield url, key


def test_no_generated_request_is_a_fault_of_a_server_with_a_real_base(server: tuple[str, str]) -> None:
    url, key = server
    own = {"authorization": f"Bearer {key}"}
    tried = set()
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=PATIENCE_S).get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if (operation.path, operation.method.lower()) not in SERVER_ROUTES.documented(is_operator=True):
            continue  # the control plane's, which has a test of its own
        tried.add(operation.label)
        for headers in [own, {}] if key else [{}]:
            try_all(operation, headers, EXAMPLES)
    for route in ("embeddings", "responses", "batches", "files", "chat/completions", "completions"):
        assert f"POST /v1/{route}" in tried
    body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 4}}
    reply = httpx2.post(f"{url}/generate", json=body, headers=own if key else {}, timeout=PATIENCE_S)
    assert (reply.status_code, reply.json()["generated_text"][:6]) == (200, " Paris")
