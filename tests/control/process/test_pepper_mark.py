"""One database has one pepper: a control plane with another is refused, and an operator may take the database over."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.config.settings import load_config
from manylora.control.billing.heavy_read_client import HeavyReads
from manylora.control.control import Control
from manylora.control.process.first_start import ensure_first_start, make_admin_key
from manylora.errors import ConfigInvalid
from tests.control.plane import Plane, in_plane, new_control


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[[Any], None]:
    return lambda scenario: in_plane(url, tmp_path, scenario)


def another(plane: Plane, pepper: str) -> Control:
    """A further control plane on the same database."""
    folder, config = plane.control.folder / "other", load_config(flags={}, environ={})
    url = plane.control.database.url
    made = new_control(url, folder, config, plane.clock, HeavyReads(None), is_key_needed=True)
    object.__setattr__(made, "pepper", pepper)
    return made


def test_a_control_plane_with_another_pepper_is_refused(run: Callable[[Any], None]) -> None:
    async def scenario(plane: Plane) -> None:
        same, other = another(plane, plane.control.pepper), another(plane, "11" * 32)
        try:
            assert await ensure_first_start(same) is None
            with pytest.raises(ConfigInvalid, match=r"another pepper than the file in control\.dir .*other"):
                await ensure_first_start(other)
            assert (await make_admin_key(other)).startswith("pb_"), "the operator takes the database over"
            await ensure_first_start(other)
            with pytest.raises(ConfigInvalid, match="all older keys are invalid"):
                await ensure_first_start(same)
        finally:
            await asyncio.gather(same.close(), other.close())

    run(scenario)
