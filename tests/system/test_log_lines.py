"""The JSON form of log lines: events, fields, context, tracebacks, and foreign text."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.system.log_lines import JsonFormatter, add_log_context, current_log_context, fields, log_context

FIRST = ("timestamp", "level", "process", "logger", "event")


def line_of(text: str, *arguments: object, **more: Any) -> dict[str, Any]:
    """Format one record and return the fields behind those of each line, with the event."""
    record = logging.LogRecord("manylora.x", logging.WARNING, "x.py", 1, text, arguments, None)
    record.__dict__.update(more)
    line: dict[str, Any] = json.loads(JsonFormatter("engine").format(record))
    assert (*line,)[:5] == FIRST
    assert (line["level"], line["process"], line["logger"]) == ("warning", "engine", "manylora.x")
    return {name: value for name, value in line.items() if name not in FIRST[:4]}


@pytest.mark.parametrize(
    ("text", "arguments", "line"),
    [
        ("usage.lost", (), {"event": "usage.lost"}),
        (
            "usage.not_shipped error=%s next_try_s=%.1f",
            ("it is = gone: now", 0.34),
            {"event": "usage.not_shipped", "error": "it is = gone: now", "next_try_s": 0.3},
        ),
        ("adapter.%s_delayed adapter=%s", ("pin", None), {"event": "adapter.pin_delayed", "adapter": None}),
        (
            "adapter.packed parts=%s num=%d is_whole=%s",
            ({"fetch": 1}, 2, True),
            {"event": "adapter.packed", "parts": {"fetch": 1}, "num": 2, "is_whole": True},
        ),
        (
            "engine.died error=%s: %s\n%s",
            ("Fault", "why", "dump"),
            {"event": "engine.died", "error": "Fault", "detail": "why\ndump"},
        ),
        (
            "kernels.fallback to=reference rate=%g",
            (float("inf"),),
            {"event": "kernels.fallback", "to": "reference", "rate": "inf"},
        ),
        ("%s is now %s; the older name works", ("a", "b"), {"event": "a is now b; the older name works"}),
        ("HTTP Request: %s", ("GET /",), {"event": "HTTP Request: GET /"}),
        ("a.b of=%s", (), {"event": "a.b of=%s"}),
    ],
)
def test_the_text_of_a_call_is_an_event_and_fields(text: str, arguments: tuple[object, ...], line: Any) -> None:
    assert line_of(text, *arguments) == line


def test_further_fields_stand_behind_and_replace_none_of_each_line() -> None:
    found = line_of("request.finished", **fields(status=200, level="x", key=None))
    assert found == {"event": "request.finished", "status": 200, "level_": "x", "key": None}


def test_lines_within_a_request_have_its_fields() -> None:
    with log_context(request_id="r-1"):
        assert line_of("x.y") == {"event": "x.y", "request_id": "r-1"}
        add_log_context(tenant="acme")
        assert current_log_context() == {"request_id": "r-1", "tenant": "acme"}
        assert line_of("x.y request_id=%s", "own") == {"event": "x.y", "request_id": "own", "tenant": "acme"}
    assert line_of("x.y") == {"event": "x.y"}


@given(st.text(), st.text())
def test_a_line_is_visible_ascii_whatever_it_quotes(event: str, value: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "a.b c=%s", (value,), None)
    record.__dict__.update(fields(event=event))
    shown = JsonFormatter("edge").format(record)
    assert shown.isascii()
    assert shown.isprintable()
    found = json.loads(shown)
    assert (found["c"], found["event_"]) == (value, event)


def test_what_a_process_does_not_catch_is_a_line_too() -> None:
    code = (
        "import threading, warnings; from manylora.system.log_lines import configure_logs; configure_logs('ingest'); "
        "warnings.warn('careful'); thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join(); "
        "raise OSError('gone')"
    )
    ended = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["event"].rpartition(": ")[2].strip(), line.get("error")) for line in lines] == [
        ("careful", None),
        ("process.failed", "ZeroDivisionError"),
        ("process.failed", "OSError"),
    ]
    assert all("Traceback" in line["exception"] for line in lines[1:])
