"""The state of a running fleet for operators: its deployments, and each replica's load and tiers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manylora.config.environment import set_variables
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.ray_serve.local import STATE, prepare_local, ray_folder
from manylora.ray_serve.names import APPLICATION, CLUSTER_VARIABLES, EDGE, NAMESPACE

REPORT_WAIT_S = 10.0
OWN_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
"""For a process without an event loop, whose calls of replicas need one of Ray's."""
TIERS = ("device", "host", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPart:
    """One deployment of the fleet.

    status   Serve's word, such as HEALTHY or UPDATING, with its reason
    running  replicas that take requests
    reports  of the replicas that answered, as `EngineReplica.report` returns them; none of edges
    """

    name: str
    status: str
    running: int
    reports: tuple[Mapping[str, Any], ...] = ()


def fleet_state(config: Config, address: str | None = None) -> list[FleetPart]:
    """Ask a running fleet for its state.

    Args:   address  of Ray's control store; None: that of this machine's local cluster
    Raises: `StartupError` if no fleet runs there
    """
    found = address or _local_address(config)
    if address is None:
        prepare_local(config)
    else:
        set_variables(CLUSTER_VARIABLES)
    set_variables(OWN_LOOP)
    import ray

    try:
        ray.init(address=found, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise StartupError(f"no Ray cluster answers at {found}: {str(error).partition(chr(10))[0]}") from error
    try:
        return _deployments(found)
    finally:
        ray.shutdown()


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


def _deployments(address: str) -> list[FleetPart]:
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        raise StartupError(f"the Ray cluster at {address} runs no application `{APPLICATION}`")
    return [
        FleetPart(
            name=name,
            status=f"{each.status.value}{f' ({each.message})' if each.message else ''}",
            running=each.replica_states.get("RUNNING", 0),
            reports=() if name == EDGE else _reports(name),
        )
        for name, each in sorted(application.deployments.items())
    ]


def _reports(name: str) -> tuple[Mapping[str, Any], ...]:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    handle = serve.get_deployment_handle(name, APPLICATION)
    try:
        results = handle.broadcast("report").results(timeout_s=REPORT_WAIT_S, return_exceptions=True)
    except (RayServeException, TimeoutError):
        return ()  # a base scaled to zero has no replica to ask
    return tuple(sorted((each for each in results if isinstance(each, dict)), key=lambda report: report["replica"]))
