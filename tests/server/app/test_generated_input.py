"""Every route of the server's OpenAPI document, with generated input, with a key and without: no fault, no hang."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response

from manylora.http.paths import SERVER_ROUTES
from tests.server.app.test_server_process import forked_server
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.long

EXAMPLES = 60
"""Number of requests to each operation."""
NOT_BUILT, OVERLOADED, SERVER_ERRORS = 501, 503, 500
KEYS = ("control.signup_open=true", "server.auth=on", "control.free_bases=tiny")
"""Settings of a server that asks for keys, and gives each caller one."""


@pytest.fixture(scope="module", params=[(), KEYS], ids=["open", "keyed"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server, and a key if it asks for keys."""
    with forked_server(tmp_path_factory.mktemp("generated"), *request.param) as (_, client):
        key = ""
        if request.param:
            reply = client.post("/v1/signup", json={"id": "generated"})
            assert reply.status_code == 201, reply.text
            key = next(value for value in reply.json()["key"].values() if str(value).startswith("pb_"))
        yield str(client.base_url), key


def assert_no_fault(case: Any, reply: Response) -> None:
    told = f"{case.as_curl_command()}\n{reply.status_code} {reply.text[:500]}"
    if reply.status_code == OVERLOADED:
        assert "retry-after" in reply.headers, told
    else:
        assert reply.status_code < SERVER_ERRORS or reply.status_code == NOT_BUILT, told
    if reply.status_code >= 400 and case.method != "HEAD":
        assert reply.headers["content-type"][0].startswith("application/json"), told


def try_all(operation: Any, headers: dict[str, str], examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def no_fault(case: schemathesis.Case[Any]) -> None:
        assert_no_fault(case, case.call(headers=headers, timeout=PATIENCE_S))

    no_fault()


def test_no_generated_input_is_a_fault_of_the_server(server: tuple[str, str]) -> None:
    url, key = server
    documented = SERVER_ROUTES.documented(is_operator=True)
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=PATIENCE_S)
    tried = set()
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if (operation.path, operation.method.lower()) not in documented:
            continue  # the control plane's, which has a test of its own
        tried.add(operation.label)
        for headers in [{"authorization": f"Bearer {key}"}, {}] if key else [{}]:
            try_all(operation, headers, EXAMPLES)
    assert {"POST /generate", "POST /v1/completions", "POST /v1/chat/completions", "POST /tokenize"} <= tried
    assert httpx2.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200
