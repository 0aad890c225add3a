"""A server's place in its control plane: which bases it may sell, and what a start and an end leave behind."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import SystemClock
from manylora.config.settings import Config, load_config
from manylora.errors import ConfigInvalid, ControlUnavailable
from manylora.server.access.control_client import HttpControlClient
from manylora.server.app import control_session as module
from manylora.server.app.control_session import ControlSession
from manylora.tenancy import Snapshot
from manylora.wiring.control import host_control


def config_in(folder: Path, **settings: Any) -> Config:
    own = {"control.dir": str(folder / "control"), "metering.dir": str(folder / "metering"), "server.auth": "on"}
    return load_config(flags=own | {name.replace("__", "."): value for name, value in settings.items()}, environ={})


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_base_without_a_price_is_not_sold_unless_it_is_declared_free(tmp_path: Path) -> None:
    async def scenario() -> None:
        member = await ControlSession.join(config_in(tmp_path), host_control, SystemClock())
        assert member.admin_key is not None
        with pytest.raises(ConfigInvalid, match=r"manylora prices set mine .*control\.free_bases=mine"):
            member.admit(["mine"])
        member.admit(["Mistral-7b-instruct"])
        member.admit(["SmolLM2-135M-Instruct"])
        with pytest.raises(ConfigInvalid, match="the base model mine has no price"):
            member.admit(["SmolLM2-135M-Instruct", "mine"])
        await member.leave()

        free = await ControlSession.join(
            config_in(tmp_path, control__free_bases=("mine",)), host_control, SystemClock()
        )
        assert free.admin_key is None
        free.admit(["mine"])
        await free.leave()

        open_one = await ControlSession.join(config_in(tmp_path, server__auth="off"), host_control, SystemClock())
        open_one.admit(["mine"])
        await open_one.leave()

    run(scenario)


def test_sign_ups_limits_of_a_base_need_its_server_or_its_price(tmp_path: Path) -> None:
    async def scenario() -> None:
        def config(base: str, **settings: Any) -> Config:
            limits = ("adapters=3", f"{base}/requests_per_minute=9")
            return config_in(tmp_path, control__signup_limits=limits, **settings)

        for unknown in ("smollm2-135m-instruct", "other"):  # names are exact, as limits of tenants are
            said = f"control.signup_limits: no server here serves the base model `{unknown}`; .*SmolLM2"
            with pytest.raises(ConfigInvalid, match=said):
                await ControlSession.join(config(unknown), host_control, SystemClock())
        served, priced = config("SmolLM2-135M-Instruct"), config("Mistral-7b-instruct")
        for each in (served, priced, config("a", control__free_bases=("a",))):
            member = await ControlSession.join(each, host_control, SystemClock())
            await member.leave()

    run(scenario)


def test_a_control_plane_elsewhere_needs_the_edges_token(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_in(tmp_path, control__url="http://127.0.0.1:1")
        with pytest.raises(ConfigInvalid, match=r"control\.edge_token"):
            await ControlSession.join(config, host_control, SystemClock())
        again = await ControlSession.join(
            config_in(tmp_path), host_control, SystemClock()
        )  # nothing is held by the failure
        assert again.meter.folder == tmp_path / "metering" / "0"
        await again.leave()

    run(scenario)


def test_a_server_waits_for_a_control_plane_that_begins_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = 0

    async def snapshot(client: HttpControlClient, since: int, epoch: str) -> Snapshot:
        nonlocal answers
        answers += 1
        if answers < 4:
            raise ControlUnavailable("the control plane does not answer (ConnectError)")
        return Snapshot(revision=7, taken_ms=0, is_whole=True, pepper="00")

    async def scenario() -> None:
        monkeypatch.setattr(HttpControlClient, "snapshot", snapshot)
        monkeypatch.setattr(module, "START_PAUSE_S", 0.001)
        config = config_in(tmp_path, control__url="http://127.0.0.1:1", control__edge_token="t")
        member = await ControlSession.join(config, host_control, SystemClock())
        assert (answers, member.directory.pepper) == (4, "00")
        await member.leave()

    run(scenario)


def test_a_server_gives_up_on_a_control_plane_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_WAIT_S", 0.2)
    monkeypatch.setattr(module, "START_PAUSE_S", 0.05)

    async def scenario() -> None:
        config = config_in(tmp_path, control__url="http://127.0.0.1:1", control__edge_token="t")
        with pytest.raises(ControlUnavailable, match="does not answer"):
            await ControlSession.join(config, host_control, SystemClock())

    run(scenario)
