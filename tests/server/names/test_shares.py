"""An alias with shares, on each route that runs an adapter: the arm of a header, and the version that answers."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from manylora.ids import TenantId
from manylora.rollouts.draw import point_of
from manylora.rollouts.rollout import Rollout, moved
from manylora.tenancy import RepositoryFacts
from tests.server.conftest import House

InHouse = Callable[..., None]
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
RULE = Rollout(parts=moved(None, {1: 60, 3: 40}), sticky="x-user")
DRAWN = Rollout(parts=moved(None, {1: 50, 3: 50}))
REPOSITORIES = (
    RepositoryFacts(
        owner=ACME,
        name="support",
        versions=(1, 2, 3),
        aliases=(("prod", 1), ("drawn", 1)),
        rollouts=(("prod", RULE), ("drawn", DRAWN)),
    ),
    RepositoryFacts(
        owner=GLOBEX,
        name="open",
        versions=(1, 3),
        aliases=(("prod", 1),),
        rollouts=(("prod", RULE),),
        is_public=True,
    ),
    RepositoryFacts(
        owner=GLOBEX, name="cut", versions=(3,), aliases=(("prod", 3),), rollouts=(("prod", RULE),), is_public=True
    ),
)
CHAT = [{"role": "user", "content": "Hi"}]
ROUTES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/generate": lambda name: {"inputs": "Hi", "parameters": {"adapter_id": name, "max_new_tokens": 1}},
    "/generate_stream": lambda name: {"inputs": "Hi", "parameters": {"adapter_id": name, "max_new_tokens": 1}},
    "/": lambda name: {"inputs": "Hi", "parameters": {"adapter_id": name, "max_new_tokens": 1}},
    "/v1/completions": lambda name: {"model": name, "prompt": "Hi", "max_tokens": 1},
    "/v1/chat/completions": lambda name: {"model": name, "messages": CHAT, "max_tokens": 1},
    "/v1/responses": lambda name: {"model": name, "input": "Hi", "max_output_tokens": 16, "store": False},
}
IN_ORDER = sorted((f"u{number}" for number in range(40)), key=lambda user: point_of("acme", "support/prod", user))
USERS = {1: IN_ORDER[:2], 3: IN_ORDER[-2:]}


async def ran(house: House, path: str, name: str, headers: dict[str, str] | None = None) -> tuple[str, str | None]:
    """Return the id of the adapter that ran, and the version that the reply names."""
    house.engine.submitted.clear()
    reply = await house.post(f"/acme/deployments/v2/llms/tiny{path}", ROUTES[path](name), headers=headers or {})
    assert reply.status_code == 200, reply.text
    adapter = house.engine.submitted[0].adapter
    assert adapter is not None
    return adapter.full_id, reply.headers.get("x-adapter-id")


@pytest.mark.parametrize("path", ROUTES)
def test_a_header_decides_the_version_on_each_route(in_house: InHouse, path: str) -> None:
    async def scenario(house: House) -> None:
        for arm, users in USERS.items():
            for user in users:
                for _ in range(2):
                    adapter, shown = await ran(house, path, "support/prod", {"X-User": user})
                    assert (adapter, shown) == (f"acme/support/{arm}", f"support/{arm}")

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)


def test_without_the_header_each_request_is_drawn(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        seen = Counter([(await ran(house, "/generate", "support/drawn"))[0] for _ in range(100)])
        assert set(seen) == {"acme/support/1", "acme/support/3"}, "one of 2**99 runs fails"

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)


def test_a_shared_alias_has_its_owners_rule_and_a_cut_one_the_rest(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for number in range(5):
            headers = {"x-user": f"u{number}"}
            arm = 1 if point_of("globex", "open/prod", f"u{number}") < 60 else 3
            assert (await ran(house, "/generate", "globex/open/prod", headers))[0] == f"globex/open/{arm}"
            assert (await ran(house, "/generate", "globex/cut/prod", headers))[0] == "globex/cut/3"

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)
