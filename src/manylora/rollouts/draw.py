"""The draw of a request: the point of an alias that it gets, by a header's value or by chance."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from manylora.rollouts.rollout import POINTS


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnArm:
    """The arm that a request was given: an alias of `owner`, as `repo/alias`, its version, and the shadow's version."""

    owner: str
    alias: str
    version: int
    shadow: int | None = None


class ArmEnd(StrEnum):
    """The end of a request to an alias. OK: answered; ERROR: refused or failed; LEFT: its caller left before."""

    OK = "ok"
    ERROR = "error"
    LEFT = "left"


class ArmDraw:
    """The draw of one request: an alias gets the same point in every attempt, and at every server by its header.

    drawn  the arms that the request was given, by owner and alias
    """

    __slots__ = ("_header", "_nonce", "drawn")

    def __init__(
        self,
        header: Callable[[str], str | None] | None = None,
        nonce: int | None = None,
        drawn: DrawnArm | None = None,
    ) -> None:
        """Args:
        header  returns the value of a request's header; None: the request has none
        nonce   64 random bits that decide the point without a header; None: the system draws them
        drawn   an arm that is drawn already, for a request that names its version
        """
        self._header = header
        self._nonce = nonce
        self.drawn = {} if drawn is None else {(drawn.owner, drawn.alias): drawn}

    @property
    def alias(self) -> str | None:
        """The only alias that the request was given an arm of, as `repo/alias`; None: it names none, or several."""
        return next(iter(self.drawn.values())).alias if len(self.drawn) == 1 else None

    def point(self, owner: str, alias: str, sticky: str = "") -> int:
        """Return the point of an alias for this request, 0 ≤ point < `POINTS`, uniform over requests or values."""
        value = self._header(sticky) if sticky and self._header is not None else None
        if value is None:
            if self._nonce is None:
                self._nonce = secrets.randbits(64)
            value = f"\0{self._nonce}"  # no header has this value
        return point_of(owner, alias, value)


def point_of(owner: str, alias: str, value: str) -> int:
    """Return the point of a header's value under an alias: the same at every server and after every restart.

    64 bits of SHA-256 modulo `POINTS`: the points' chances differ by less than 10**-17.
    """
    digest = hashlib.sha256(f"{owner}/{alias}\0{value}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) % POINTS


def nonce_of(text: str) -> int:
    """Return the nonce of a text, such as the id of a batch's line, whose repetition gets the same arm."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])
