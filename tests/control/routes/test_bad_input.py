"""Every route of the control plane's OpenAPI document, with generated input: no fault of the server's, JSON always."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.conftest import long
from tests.control.control_process import ControlProcess, running_control
from tests.control.postgres_server import PostgresServer
from tests.support.waiting import PATIENCE_S

NOT_BUILT = 501
"""What Predibase's interface has and this server has not; the only 5xx that is meant."""
EXAMPLES = {"sqlite": 12, "postgresql": 4}
"""Of each route. Most faults are of the routes alone, so that PostgreSQL gets fewer."""


@pytest.fixture(scope="module", params=long("sqlite", "postgresql"))
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plane(
    database: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlProcess]:
    more = ["control.signup_open=true"]
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        more.append(f"control.database_url={server.new_database().render_as_string(hide_password=False)}")
    with running_control(tmp_path_factory.mktemp("fuzzed") / "kept", *more) as running:
        yield running


def test_no_generated_input_is_a_fault_of_the_server(plane: ControlProcess, database: str) -> None:
    headers = {"authorization": f"Bearer {plane.admin_key}"}
    document = schemathesis.openapi.from_url(f"{plane.url}/admin/openapi.json", headers=headers, timeout=PATIENCE_S)
    tried = set()
    for found in document.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        tried.add(operation.label)

        @settings(
            max_examples=EXAMPLES[database], deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(operation.as_strategy())
        def no_fault(case: schemathesis.Case[Any]) -> None:
            reply = case.call(headers=headers, timeout=PATIENCE_S)
            if reply.status_code != NOT_BUILT:
                checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
                case.validate_response(reply, checks=checks)

        no_fault()
    assert {"POST /admin/tenants", "POST /v1/signup", "PUT /admin/tenants/{tenant}/limits"} <= tried
