"""Whether the control plane is well, on both engines."""

from pathlib import Path

from sqlalchemy import URL

from tests.control.plane import Plane, in_plane


def test_health_is_that_of_the_database(url: URL, tmp_path: Path) -> None:
    async def well(plane: Plane) -> None:
        reply = await plane.call("GET", "/health", key=None)
        assert (reply.status_code, reply.json()["status"]) == (200, "ok")
        async with plane.control.database.write() as connection:
            await connection.exec_driver_sql("DROP TABLE revisions")
        broken = await plane.call("GET", "/health", key=None)
        assert (broken.status_code, broken.json()["code"]) == (503, "control_unavailable")

    in_plane(url, tmp_path, well)
