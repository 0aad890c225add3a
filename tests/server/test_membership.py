"""A server's place in its control plane: which bases it may sell, and what a start and an end leave behind."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from manylora.cli.hosting import host_control
from manylora.clock import SystemClock
from manylora.config import Config, load_config
from manylora.errors import ConfigInvalid
from manylora.server.membership import Membership


def config_in(folder: Path, **settings: Any) -> Config:
    own = {"control.dir": str(folder / "control"), "metering.dir": str(folder / "metering"), "server.auth": "on"}
    return load_config(flags=own | {name.replace("__", "."): value for name, value in settings.items()}, environ={})


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_base_without_a_price_is_not_sold_unless_it_is_declared_free(tmp_path: Path) -> None:
    async def scenario() -> None:
        member = await Membership.join(config_in(tmp_path), host_control, SystemClock())
        assert member.admin_key is not None
        with pytest.raises(ConfigInvalid, match=r"manylora prices set mine .*control\.free_bases=mine"):
            member.admit("mine")
        member.admit("Mistral-7b-instruct")
        member.admit("SmolLM2-135M-Instruct")
        await member.leave()

        free = await Membership.join(config_in(tmp_path, control__free_bases=("mine",)), host_control, SystemClock())
        assert free.admin_key is None
        free.admit("mine")
        await free.leave()

        open_one = await Membership.join(config_in(tmp_path, server__auth="off"), host_control, SystemClock())
        open_one.admit("mine")
        await open_one.leave()

    run(scenario)


def test_a_control_plane_elsewhere_needs_the_edges_token(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_in(tmp_path, control__url="http://127.0.0.1:1")
        with pytest.raises(ConfigInvalid, match=r"control\.edge_token"):
            await Membership.join(config, host_control, SystemClock())
        again = await Membership.join(
            config_in(tmp_path), host_control, SystemClock()
        )  # nothing is held by the failure
        assert again.meter.folder == tmp_path / "metering" / "0"
        await again.leave()

    run(scenario)
