"""The process that asks a fleet on Ray for its state: `python -m manylora.ray_serve.state_process ADDRESS`.

It writes one line of JSON: `{"parts": [...]}` with the fields of each `FleetPart`, or `{"refused": REASON}`.

Serve's handles ask its controller for changes in a thread that no public call ends. Ray ends a process with exit code 1
if that thread asks after `ray.shutdown`. This process therefore ends by `os._exit`, and leaves Ray without a shutdown.
"""

import asyncio
import dataclasses
import json
import os
import sys
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from manylora.errors import StartupError
from manylora.ray_serve.each_replica import Answers, ask_each
from manylora.ray_serve.names import APPLICATION, EDGE, NAMESPACE
from manylora.ray_serve.status import FleetPart

REPORT_WAIT_S = 10.0


def main() -> None:
    """Write the answer to standard output, and end at once."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as own:
        os.dup2(2, 1)  # what libraries print is no part of the answer
        json.dump(_answer(sys.argv[1]), own)
    os._exit(0)


def _answer(address: str) -> dict[str, Any]:
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        return {"parts": [dataclasses.asdict(part) for part in _parts(address)]}
    except ConnectionError as error:
        return {"refused": f"no Ray cluster answers at {address}: {str(error).partition(chr(10))[0]}"}
    except StartupError as error:
        return {"refused": error.message}


def _parts(address: str) -> list[FleetPart]:
    application = serve.status().applications.get(APPLICATION)
    if application is None:
        raise StartupError(f"the Ray cluster at {address} runs no application `{APPLICATION}`")
    parts = []
    for name, each in sorted(application.deployments.items()):
        answers = Answers() if name == EDGE else _answers(name)
        parts.append(
            FleetPart(
                name=name,
                status=f"{each.status.value}{f' ({each.message})' if each.message else ''}",
                running=each.replica_states.get("RUNNING", 0),
                reports=[answers.values[replica] for replica in sorted(answers.values)],
                silent=answers.silent,
            )
        )
    return parts


def _answers(name: str) -> Answers:
    """Return the reports of a base's replicas."""
    handle = serve.get_deployment_handle(name, APPLICATION)
    try:
        return asyncio.run(ask_each(handle, "report", within_s=REPORT_WAIT_S))
    except RayServeException:
        return Answers()  # a base scaled to zero has no replica to ask


if __name__ == "__main__":
    main()
