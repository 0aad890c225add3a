"""Files of exported usage: sums that an interrupted run left in a shorter file are in no second one."""

from pathlib import Path
from typing import Any

import pytest

from manylora.cli.billing import export

HOUR = 3_600_000


class Server:
    """A receiver's cursor, with one sum in each hour. `is_away`: it takes no acknowledgement."""

    def __init__(self) -> None:
        self.begin, self.now, self.is_away = HOUR, 2 * HOUR, False
        self.faster_end = 0

    def ask(self, method: str, path: str, *, body: Any = None, **_: object) -> "Server":
        self.reply: dict[str, Any] = {}
        if method == "GET":
            events = [{"id": f"hour-{at // HOUR}"} for at in range(self.begin, self.now, HOUR)]
            self.reply = {"begin_ms": self.begin, "end_ms": self.now, "events": events, "pages": 1}
            return self
        if self.is_away:
            raise ConnectionError
        if self.faster_end:
            self.begin, self.faster_end = self.faster_end, 0
        is_new = body["begin_ms"] == self.begin
        self.begin = body["end_ms"] if is_new else self.begin
        self.reply = {"is_new": is_new}
        return self

    def json(self) -> dict[str, Any]:
        return self.reply


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr(export, "RemoteServer", lambda **_: found)
    return found


def run(folder: Path) -> None:
    export.export_usage(folder, form="cloudevents", sink="meter", url="", key=None)


def hours(folder: Path) -> list[str]:
    return sorted(line for file in folder.iterdir() for line in file.read_text().splitlines())


def test_a_run_that_ended_before_its_acknowledgement_leaves_no_sum_twice(server: Server, tmp_path: Path) -> None:
    server.is_away = True
    with pytest.raises(ConnectionError):
        run(tmp_path)
    server.is_away, server.now = False, 4 * HOUR
    run(tmp_path)
    run(tmp_path)
    assert hours(tmp_path) == [f'{{"id": "hour-{number}"}}' for number in (1, 2, 3)]


def test_a_run_that_was_slower_than_another_one_removes_its_own_file(server: Server, tmp_path: Path) -> None:
    server.now, server.faster_end = 4 * HOUR, 2 * HOUR  # the other one began an hour earlier, in another folder
    run(tmp_path)
    assert hours(tmp_path) == []
    run(tmp_path)
    assert hours(tmp_path) == [f'{{"id": "hour-{number}"}}' for number in (2, 3)]
