"""A copy of a data directory of version 0.1, as that version would have left it where the copy lies."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Boolean, Connection, MetaData, create_engine, text

from manylora.config.folders import cache_dir
from manylora.control.storage.database import migrate

VERSION_0_1 = Path(__file__).parent / "0.1"
REVISION_0_1 = "0002"
PARTS = ("adapter_config.json", "adapter_model.safetensors")


def read_json(name: str) -> Any:  # JSON
    return json.loads((VERSION_0_1 / f"{name}.json").read_text(encoding="utf-8"))


def copy_to(folder: Path) -> Path:
    """Copy the data directory; returns its settings file. Compiled kernels are those of the machine's own cache."""
    shutil.copytree(VERSION_0_1, folder)
    kernels = cache_dir() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "kernels").symlink_to(kernels)
    settings = folder / "settings.toml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("@DIR@", str(folder)), encoding="utf-8")
    packed = read_json("told")["packed"]
    for old, new in names_of_packed(folder, packed):
        (folder / "cache/adapters/0" / old).rename(folder / "cache/adapters/0" / new)
    return settings


def names_of_packed(folder: Path, packed: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of each packed adapter the `.name` file that is there, and what version 0.1 calls it where the files lie now.

    Its name has the times and inodes of the adapter's two files, which no copy keeps.
    """
    for path in sorted((folder / "cache/adapters/0").glob("*.name")):
        key = path.name.partition(".")[0]
        facts = [(folder / packed["folders"][key] / name).stat() for name in PARTS]
        stamp = " ".join(f"{fact.st_mtime_ns}.{fact.st_size}.{fact.st_dev}.{fact.st_ino}" for fact in facts)
        version = hashlib.sha256("\0".join((stamp, packed["fingerprint"], "bfloat16")).encode()).hexdigest()
        yield path.name, f"{key}.{version[:40]}.name"


def load_rows(url: URL) -> None:
    """Fill an empty PostgreSQL database with the tables and rows that version 0.1 had in its SQLite file."""
    migrate(url, REVISION_0_1)
    rows: dict[str, list[dict[str, Any]]] = read_json("rows")
    engine = create_engine(url)
    with engine.begin() as connection:
        found = MetaData()
        found.reflect(connection)
        connection.execute(text("DELETE FROM revisions"))
        for table in found.sorted_tables:
            if table.name == "alembic_version" or not rows[table.name]:
                continue
            flags = {column.name for column in table.columns if isinstance(column.type, Boolean)}
            connection.execute(table.insert(), [_with_flags(row, flags) for row in rows[table.name]])
            if "number" in table.primary_key.columns:
                _count_on(connection, table.name)
    engine.dispose()


def _with_flags(row: dict[str, Any], flags: set[str]) -> dict[str, Any]:
    """SQLite's 0 and 1 as PostgreSQL's booleans."""
    return {name: bool(value) if name in flags else value for name, value in row.items()}


def _count_on(connection: Connection, table: str) -> None:
    """Let the numbers of new rows follow those that were given."""
    counter = f"pg_get_serial_sequence('{table}', 'number')"
    connection.execute(text(f"SELECT setval({counter}, (SELECT MAX(number) FROM {table}))"))  # a table of ours
