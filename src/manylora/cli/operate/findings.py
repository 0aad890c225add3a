"""The result of one check of `manylora doctor`: its state, what was found, and what to do."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """OK: nothing to do; WARNING: a server starts, but has less than it could have; FAILED: it does not start."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. remedy: what to do; empty where there is nothing to do."""

    check: str
    state: State
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, state=State.OK, found=found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, state=State.WARNING, found=found, remedy=remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, state=State.FAILED, found=found, remedy=remedy)
