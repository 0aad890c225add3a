"""The state of a running fleet for operators: its deployments, and each replica's load and tiers."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manylora.config.environment import child_environment, set_variables
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.ray_serve.local import STATE, prepare_local, ray_folder
from manylora.ray_serve.names import CLUSTER_VARIABLES

OWN_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
"""For a process without an event loop, whose calls of replicas need one of Ray's."""
TIERS = ("device", "host", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPart:
    """One deployment of the fleet.

    status   Serve's word, such as HEALTHY or UPDATING, with its reason
    running  replicas that take requests
    reports  of the replicas that answered, as `EngineReplica.report` returns them; none of edges
    silent   the names of the replicas that did not answer
    """

    name: str
    status: str
    running: int
    reports: Sequence[Mapping[str, Any]] = ()
    silent: Sequence[str] = ()


def fleet_state(config: Config, address: str | None = None) -> list[FleetPart]:
    """Ask a running fleet for its state, in a process of its own (`state_process`).

    Args:   address  of Ray's control store; None: that of this machine's local cluster
    Raises: `StartupError` if no fleet runs there, or if it could not be asked
    """
    found = address or _local_address(config)
    if address is None:
        prepare_local(config)
    else:
        set_variables(CLUSTER_VARIABLES)
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "manylora.ray_serve.state_process", found],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**child_environment(joins_ray=True), **OWN_LOOP},
    )
    try:
        answer = json.loads(asked.stdout)
    except ValueError:
        last = asked.stderr.strip().rpartition("\n")[2] or f"exit code {asked.returncode}"
        raise StartupError(f"the fleet at {found} could not be asked for its state: {last}") from None
    if "refused" in answer:
        raise StartupError(answer["refused"])
    return [FleetPart(**part) for part in answer["parts"]]


def state_lines(deployments: Sequence[FleetPart]) -> list[str]:
    """Return the table that `manylora cluster status` prints: a line for each deployment and each replica."""
    lines = []
    for each in deployments:
        lines.append(f"{each.name}: {each.running} running, {each.status}")
        for report in each.reports:
            tiers = report["tiers"]
            shown = ", ".join(f"{tiers.get(tier, 0)} on {tier}" for tier in TIERS)
            state = "up" if report["is_up"] else "restarting"
            lines.append(
                f"  {report['replica']}  {'draining' if report['is_draining'] else state}  "
                f"{report['in_flight']} requests, backlog {report['backlog_tokens']:.0f} tokens, "
                f"{report['tokens_per_s']:.0f} tokens/s, adapters: {shown}"
            )
        lines += [f"  {name}  no answer" for name in each.silent]
    return lines


def _local_address(config: Config) -> str:
    try:
        address = json.loads((ray_folder(config) / STATE).read_text(encoding="utf-8"))["address"]
    except (FileNotFoundError, ValueError, KeyError):
        raise StartupError(
            f"no local cluster is noted in {ray_folder(config)}; start one with `manylora cluster serve --local`, or "
            "give the address of another with --address"
        ) from None
    return str(address)
