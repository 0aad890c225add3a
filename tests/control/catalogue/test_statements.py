"""The statements of a large catalogue: few for the whole plan, and a bounded number for each step."""

from pathlib import Path
from typing import Any

from sqlalchemy import event

from tests.control.catalogue.declaring import PATH, Json
from tests.control.plane import Plane, in_plane, migrated_in

MOST_OF_A_PLAN = 30
MOST_OF_A_STEP = {"create": 20, "change": 16}
"""A new tenant has its credit, its wallet and its first key."""


def declared(number: int, *, weight: int, description: str) -> Json:
    """A catalogue of that number of tenants with two repositories each, shared with the next tenant."""
    return {
        "tenants": {
            f"t{each}": {
                "weight": weight,
                "repositories": {
                    name: {"description": description, "shared_with": [f"t{(each + 1) % number}"]}
                    for name in ("one", "two")
                },
            }
            for each in range(number)
        }
    }


def test_a_plan_of_many_tenants_takes_few_statements_and_each_step_a_bounded_number(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        statements = list[str]()

        def note(*arguments: Any) -> None:
            statements.append(arguments[2])

        event.listen(plane.control.database._engine.sync_engine, "before_cursor_execute", note)

        async def put(body: Json, query: str) -> tuple[Json, int]:
            statements.clear()
            reply = await plane.call("PUT", f"{PATH}?{query}", body)
            assert reply.status_code == 200, reply.text
            return reply.json(), len(statements)

        for verb, body in (
            ("create", declared(20, weight=1, description="old")),
            ("change", declared(20, weight=2, description="new")),
        ):
            dry, planned = await put(body, "dryRun=true")
            assert planned <= MOST_OF_A_PLAN, verb
            done, applied = await put(body, f"digest={dry['digest']}")
            assert (done["done"], done["failed"]) == (60, None)
            assert applied - planned <= 60 * MOST_OF_A_STEP[verb], verb
        dry, _ = await put(body, "dryRun=true")
        assert dry["plan"] == []

    in_plane(migrated_in(tmp_path), tmp_path, scenario)
