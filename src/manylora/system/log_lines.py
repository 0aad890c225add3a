"""Log lines of every process: one JSON object a line, on standard error.

The text of a call is an event and its fields: `log.warning("usage.not_shipped error=%s next_try_s=%.1f", …)` writes
`{"timestamp": …, "level": "warning", "process": "edge", "logger": …, "event": "usage.not_shipped", "error": …,
"next_try_s": 0.4}`. Words behind a colon are the field `detail`. `extra=fields(…)` adds fields whose names vary. A text
of another form, such as a library's, is the event as a whole. `docs/logs.md` describes the lines for operators.
"""

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

_EVENT = re.compile(r"(?P<event>[\w%]+(?:\.[\w%]+)+)(?P<fields>(?: \w+=[^\s:]+)*)(?:: (?P<detail>.+))?", re.DOTALL)
_SLOT = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")
_FIELDS = "manylora_fields"
"""Attribute of a log record that holds the fields of `extra=fields(…)`."""
_CONTEXT: ContextVar[Mapping[str, object]] = ContextVar("log_context", default={})  # noqa: B039  # never changed in place

log = logging.getLogger(__name__)


def configure_logs(process: str) -> None:
    """Write all log lines of this process to standard error, uncaught exceptions and warnings among them.

    A process calls it once, after `make_streams_lossy` where it does that. manylora's own lines begin at INFO, those of
    libraries at WARNING.

    Args:  process  the kind of process, which each line names: edge, engine, ingest, …
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("manylora").setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda ended: _log_uncaught(
        ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback
    )


def fields(**values: object) -> dict[str, object]:
    """Return the `extra` of a log call that adds these fields to its line."""
    return {_FIELDS: values}


@contextmanager
def log_context(**values: object) -> Iterator[None]:
    """Add fields to every line that is logged within the block, by its tasks too: the request id, the tenant."""
    token = _CONTEXT.set({**_CONTEXT.get(), **values})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def add_log_context(**values: object) -> None:
    """Add fields to every line until the end of the innermost `log_context`."""
    _CONTEXT.set({**_CONTEXT.get(), **values})


def current_log_context() -> dict[str, object]:
    """Return the fields that each line has here, for a process that works for this one."""
    return dict(_CONTEXT.get())


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of ASCII, in which a terminal finds no character to act on."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        event, found = event_of(record)
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": event,
        }
        for name, value in (*_CONTEXT.get().items(), *found.items(), *getattr(record, _FIELDS, {}).items()):
            line[name if name not in _OF_EACH_LINE else f"{name}_"] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


_OF_EACH_LINE = ("timestamp", "level", "process", "logger", "event")


def event_of(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """Return the event of a record and the fields that its text has."""
    text = str(record.msg)
    form = _EVENT.fullmatch(text)
    arguments = record.args if isinstance(record.args, tuple) else ()
    if form is None or len(_SLOT.findall(text)) != len(arguments):
        return record.getMessage(), {}
    values = iter(arguments)
    event = _filled(form["event"], values)
    found: dict[str, object] = {}
    for word in form["fields"].split():
        name, _, slot = word.partition("=")
        found[name] = _value(slot, values)
    if form["detail"]:
        found["detail"] = _filled(form["detail"], values)
    return event, found


def _value(slot: str, values: Iterator[Any]) -> object:
    """Return the value of one field. Numbers, booleans and None keep their type; a float has the digits of its slot."""
    if not _SLOT.fullmatch(slot):
        return _filled(slot, values)
    value = next(values)
    if isinstance(value, float) and math.isfinite(value):
        return float(slot % value) if slot[-1] in "efg" else value
    return value if value is None or isinstance(value, bool | int | dict | list | tuple) else slot % (value,)


def _filled(text: str, values: Iterator[Any]) -> str:
    return _SLOT.sub(lambda slot: slot[0] % (next(values),), text)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("process.failed error=%s", kind.__name__, exc_info=(kind, error, trace))
