"""Bases of dedicated deployments that cannot be served: each refused over HTTP by the name that `serve` tells."""

from pathlib import Path
from typing import Any

import pytest

from manylora.wiring.placer.local_placer import LocalPlacer
from tests.cli.test_refused_bases import REFUSALS, Refusal, changed, save_served
from tests.conftest import thinned
from tests.control.plane import Plane, in_plane, migrated_in

IN_FILES = ("architecture", "rope type", "quantisation", "bits", "tokenizer of another vocabulary")
"""The kinds that lie in the files of a base; the others are settings of a server."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", thinned(IN_FILES, 4))
def test_a_deployment_of_a_base_that_cannot_be_served_is_refused_by_name(
    name: str, model: Path, tmp_path: Path
) -> None:
    changed(model, tmp_path / "base", REFUSALS[name])
    assert_refused(tmp_path, {}, REFUSALS[name].said)


def test_a_deployment_that_the_memory_cannot_hold_is_refused_with_the_numbers(model: Path, tmp_path: Path) -> None:
    changed(model, tmp_path / "base", Refusal(()))
    assert_refused(tmp_path, {"placement.memory_bytes": 300 << 20}, ("300.0 MiB for all replicas",))


def assert_refused(folder: Path, settings: dict[str, Any], said: tuple[str, ...]) -> None:
    """Ask for a deployment of the base in `folder`; nothing may be recorded, and no replica may start."""

    async def scenario(plane: Plane) -> None:
        plane.control.placers.append(LocalPlacer(plane.control, "http://127.0.0.1:1"))
        key = await plane.new_tenant("acme")
        body = {"name": "mine", "config": {"baseModel": "base"}}
        reply = await plane.call("POST", "/v2/deployments", body, key=key)
        assert (reply.status_code, reply.json().get("code")) == (422, "invalid_parameter"), reply.text
        assert all(part in reply.json()["error"] for part in said), reply.text
        shown = (await plane.call("GET", "/v2/deployments?type=dedicated", key=key)).json()["data"]
        assert shown == []

    own = {"model.base": str(folder / "base"), "model.cache_dir": str(folder / "cache"), **settings}
    in_plane(migrated_in(folder / "control"), folder / "control", scenario, settings=own)
