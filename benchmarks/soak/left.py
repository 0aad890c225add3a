"""Leftovers of a stopped server in its database and folders, of no use any more."""

import sqlite3
from contextlib import closing
from pathlib import Path

LEFTOVERS = {
    "leases of edges that have stopped": "SELECT count(*) FROM leases",
    "versions that are still on their way": "SELECT count(*) FROM versions WHERE state = 'uploading'",
    "aliases of versions that are not there": "SELECT count(*) FROM aliases a LEFT JOIN versions v "
    "ON v.repository = a.repository AND v.version = a.version WHERE v.state IS NULL OR v.state = 'deleted'",
    "reports of deleted versions": "SELECT count(*) FROM version_reports r LEFT JOIN versions v "
    "ON v.repository = r.repository AND v.version = r.version WHERE v.state IS NULL OR v.state = 'deleted'",
    "files that grow": "SELECT count(*) FROM stored WHERE NOT is_whole",
}
KEPT = "SELECT count(*) FROM versions WHERE state IN ('ready', 'archived')"


def left_in_database(folder: Path) -> list[str]:
    """Return a line for each kind of row that is of no use once all servers have stopped."""
    with closing(sqlite3.connect(folder / "control" / "control.db")) as connection:
        counts = {name: connection.execute(query).fetchone()[0] for name, query in LEFTOVERS.items()}
    return [f"{number} {name}" for name, number in counts.items() if number]


def left_in_folders(folder: Path) -> list[str]:
    """Return a line if the number of uploaded folders is not that of the versions."""
    with closing(sqlite3.connect(folder / "control" / "control.db")) as connection:
        wanted = connection.execute(KEPT).fetchone()[0]
    found = len(list((folder / "control" / "uploads").rglob("adapter_model.safetensors")))
    return [] if found == wanted else [f"{found} folders of uploads for {wanted} versions"]
