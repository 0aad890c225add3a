"""Names that Ray Serve, the commands and the deployment files share."""

FACTORY = "manylora.wiring.engine:build_engine"
ROUTER = "manylora.ray_serve.edge.router:AffinityRouter"
POLICY = "manylora.ray_serve.scaling:TokenBacklog"
BUILD = "manylora.ray_serve.application:build"
APPLICATION = "manylora"
EDGE = "Edge"
ENGINE = "Engine"
NAMESPACE = "manylora"
CLUSTER_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
"""Variables of every process of a cluster: tokens between its processes, and no reports to others.

Ray gives its workers, and the engines below them, a niceness of 15, so that any other program of the machine precedes
them.
"""


def engine_name(number: int) -> str:
    """Return the name of the deployment of a base's engines: `Engine` for the default base, then `Engine-1`."""
    return ENGINE if number == 0 else f"{ENGINE}-{number}"
