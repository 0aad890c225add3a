"""Pins of a catalogue: the adapters that stay on the device, at the server that the command talks to."""

from dataclasses import dataclass
from urllib.parse import quote

from manylora.adapter_ref import SourceName
from manylora.cli.remote.client import RemoteServer
from manylora.cli.remote.output import fail, say

PIN_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class PinStep:
    """One adapter to pin, or to unpin: `pbase://acme/triage/3`, `local://tone`, `hub://org/name`."""

    name: str
    is_pinned: bool

    def json(self) -> dict[str, object]:
        return {"verb": "pin" if self.is_pinned else "unpin", "name": self.name}


def pinned_names(server: RemoteServer) -> set[str] | None:
    """Return the names of the adapters that operators have pinned; None: the server has no engines."""
    found: set[str] = set()
    query: dict[str, object] = {"limit": 1000}
    while True:
        reply = server.ask_if_there("/v1/adapters", expects="data", query=query)
        if reply is None:
            return None
        page = reply.json()
        for info in page["data"]:
            if info["is_pinned"]:
                owner = f"{info['tenant']}/" if info["tenant"] else ""
                found.add(f"{info['source']}://{owner}{info['id']}")
        if not page["has_more"] or page["after"] == query.get("after"):
            return found
        query["after"] = page["after"]


def pin_steps(present: set[str] | None, declared: list[str], *, prune: bool) -> list[PinStep]:
    """Return the steps from the present pins to the declared ones. A pin that is not declared ends with `prune`.

    Ends the program for pins at a server without engines.
    """
    if present is None and not declared:
        return []
    if present is None:
        fail("`pins` need a server with engines, and a control plane alone answers here")
    wanted = {name if "://" in name else f"{SourceName.LOCAL}://{name}" for name in declared}
    made = [PinStep(name, is_pinned=True) for name in sorted(wanted - present)]
    return made + [PinStep(name, is_pinned=False) for name in sorted(present - wanted) if prune]


def set_pin(server: RemoteServer, step: PinStep) -> bool:
    """Do one step, and return whether the server has done it."""
    source, _, rest = step.name.partition("://")
    owner, _, upload = rest.partition("/")
    is_upload = source == SourceName.PBASE
    if is_upload and not upload:
        fail(f"a pin of an upload is `pbase://tenant/repo/version`. Given: {step.name!r}")
    query: dict[str, object] = {"source": source, "wait": PIN_WAIT_S} | ({"tenant": owner} if is_upload else {})
    path = f"/v1/adapters/{quote(upload if is_upload else rest, safe='/')}"
    body = {"action": "pin" if step.is_pinned else "unpin"}
    info = server.ask("POST", path, expects="state", query=query, body=body, wait_s=PIN_WAIT_S).json()
    is_done = info["is_pinned"] is step.is_pinned
    if not is_done:
        say(f"failed: {body['action']} {step.name}: {info['error'] or info['state']}", err=True)
    return is_done
