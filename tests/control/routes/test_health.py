"""Whether the control plane is well, on both engines."""

from pathlib import Path

from sqlalchemy import URL

from manylora import __version__
from tests.control.plane import Plane, in_plane


def test_health_is_that_of_the_database(url: URL, tmp_path: Path) -> None:
    async def well(plane: Plane) -> None:
        reply = await plane.call("GET", "/health", key=None)
        assert (reply.status_code, reply.json()["status"]) == (200, "ok")
        refused = await plane.call("GET", "/v1/account", key="pb_wrong")
        assert (refused.status_code, refused.headers["x-manylora-version"]) == (401, __version__)
        assert reply.headers["x-manylora-version"] == __version__
        async with plane.control.database.write() as connection:
            await connection.exec_driver_sql("DROP TABLE revisions")
        broken = await plane.call("GET", "/health", key=None)
        assert (broken.status_code, broken.json()["code"]) == (503, "control_unavailable")

    in_plane(url, tmp_path, well)
