"""A Ray cluster on this machine, for `manylora cluster serve --local`: loopback alone, with a token, and no dashboard.

The module imports Ray inside its functions: Ray reads its variables at its import.
"""

import contextlib
import dataclasses
import json
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock, SystemClock
from manylora.config.environment import set_variables
from manylora.config.folders import cache_dir
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid, StartupError
from manylora.http.listener import listen
from manylora.http.loopback import is_loopback
from manylora.ray_serve.names import APPLICATION, CLUSTER_VARIABLES, NAMESPACE
from manylora.system.resources import find_resources

LOOPBACK = "127.0.0.1"
STORE_BYTES = 100 << 20
"""Bytes of Ray's object store: items of streams are small and pass it by."""
END_MARGIN_S = 30.0
"""Seconds beyond `server.drain_s` for the end of the application: of edges and engines after the last request."""
STATE = "cluster.json"
LOCAL_VARIABLES = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: nodes are one machine, and have its loopback address
    "RAY_enable_metrics_collection": "0",  # its ports would be open to all; the edge has `/metrics`
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
"""Variables of a local cluster beside `CLUSTER_VARIABLES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A cluster that this process has started.

    address  `host:port` of Ray's control store
    url      address of the edge
    """

    address: str
    url: str


def ray_folder(config: Config) -> Path:
    """Return the folder with the token and the address of this machine's cluster."""
    return cache_dir(config) / "ray"


def prepare_local(config: Config) -> None:
    """Set the variables of a local cluster in this process, and make its token at the first call.

    It must precede the first import of Ray.
    """
    token = _kept_secret(config, "token")
    set_variables({**CLUSTER_VARIABLES, **LOCAL_VARIABLES, "RAY_AUTH_TOKEN_PATH": str(token)})


def refuse_public(config: Config) -> None:
    """Raise `ConfigInvalid` for an address that other machines reach: a local cluster listens on loopback alone."""
    if not is_loopback(config.server.host):
        raise ConfigInvalid(f"server.host is {config.server.host}: a local cluster listens on loopback alone")


def refuse_too_few(config: Config, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]] = ()) -> None:
    """Raise `StartupError` if a cluster lacks processors or cards for the first replicas, which would wait for ever.

    Args:
        resources  of the cluster, by Ray's names
        nodes      of each node: one of them must hold the largest replica
    """
    ray, engines = config.ray, max(config.ray.engines, 1) * (1 + len(config.model.more_bases))
    cpus = ray.edges * ray.edge_cpus + engines * ray.engine_cpus
    for name, needed in (("CPU", cpus), ("GPU", engines * ray.engine_cards)):
        if needed > (found := resources.get(name, 0.0)):
            raise StartupError(
                f"the cluster has {found:g} {name}, and the settings ask for {needed:g}: {ray.edges} edges (ray.edges) "
                f"of {ray.edge_cpus:g} CPU (ray.edge_cpus), {engines} replicas (ray.engines for each base) of "
                f"{ray.engine_cpus:g} CPU and {ray.engine_cards:g} GPU (ray.engine_cpus, ray.engine_cards)"
            )
    for name, needed in (("CPU", max(ray.engine_cpus, ray.edge_cpus)), ("GPU", ray.engine_cards)):
        largest = max((node.get(name, 0.0) for node in nodes), default=needed)
        if needed > largest:
            raise StartupError(
                f"one replica asks for {needed:g} {name}, and the largest node of the cluster has {largest:g} "
                "(ray.engine_cpus, ray.edge_cpus, ray.engine_cards)"
            )


def node_resources() -> list[Mapping[str, float]]:
    """Return the resources of each node that lives, of the cluster that this process has joined."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def with_shares(config: Config) -> Config:
    """Return the settings with an equal share of this machine's memory for each replica that may run at once."""
    if config.engine.memory_bytes:
        return config
    replicas = config.ray.most_engines * (1 + len(config.model.more_bases))
    share = find_resources().memory_bytes // replicas
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, memory_bytes=share))


def with_secret(config: Config) -> Config:
    """Return the settings with a secret of edges and engines, where the mode needs one and none is given."""
    if config.ray.mode != "direct" or config.fleet.secret_file:
        return config
    file = str(_kept_secret(config, "fleet-secret"))
    return dataclasses.replace(config, fleet=dataclasses.replace(config.fleet, secret_file=file))


def _kept_secret(config: Config, name: str) -> Path:
    """Return a file with 256 random bits that only its user may read; the first call makes it."""
    folder = ray_folder(config)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = folder / name
    if not kept.exists():
        fresh = folder / f"{name}.{secrets.token_hex(4)}"
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32), encoding="ascii")
        fresh.rename(kept)
    return kept


@contextlib.contextmanager
def local_cluster(config: Config, report: Callable[[str], None], factory: str) -> Iterator[LocalCluster]:
    """Start Ray, the application and its HTTP proxy; yield them, and end all of it.

    Raises: `ConfigInvalid`, `StartupError` with Serve's reason
    """
    refuse_public(config)
    port = free_port(config)
    prepare_local(config)
    import ray

    cpus = find_resources().threads
    with tempfile.TemporaryDirectory(prefix="ml-ray-", dir="/tmp") as folder:  # its sockets' paths are limited
        context = ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            namespace=NAMESPACE,
            _temp_dir=folder,
            _node_ip_address=LOOPBACK,
        )
        try:
            refuse_too_few(config, ray.cluster_resources(), node_resources())
            address = context.address_info["gcs_address"]
            report(f"Ray {ray.__version__} started at {address}: {cpus} CPU, no dashboard, token in use")
            url = _deploy(with_secret(config), port, factory)
            state = ray_folder(config) / STATE
            state.write_text(json.dumps({"address": address, "url": url}), encoding="utf-8")
            yield LocalCluster(address=address, url=url)
        finally:
            (ray_folder(config) / STATE).unlink(missing_ok=True)
            _end(config.server.drain_s + END_MARGIN_S, SystemClock())


def free_port(config: Config) -> int:
    """Return `server.port`, or a free one for 0. Raises `ConfigInvalid` if another program listens there."""
    with listen(config.server.host, config.server.port, group="server") as probe:
        port: int = probe.getsockname()[1]
    return port


def _deploy(config: Config, port: int, factory: str) -> str:
    """Start the HTTP proxy and the application; return the edge's address. Raises `StartupError`."""
    from ray import serve

    from manylora.ray_serve.application import application

    host = config.server.host
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "keep_alive_timeout_s": 75})
    try:
        serve.run(application(config, factory), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        status = serve.status().applications.get(APPLICATION)
        reasons = [] if status is None else [each.message for each in status.deployments.values() if each.message]
        raise StartupError(f"the application did not start: {'; '.join(reasons) or error}") from error
    return f"http://{host}:{port}"


def _end(most_s: float, clock: Clock) -> None:
    """End the application, then Serve and the processes of this cluster; those of any other cluster stay.

    Serve's own shutdown would end the proxies first, and with them every stream under way.
    """
    import ray
    from ray import serve

    end_s = clock.monotonic_s() + most_s
    while APPLICATION in serve.status().applications and clock.monotonic_s() < end_s:
        with contextlib.suppress(TimeoutError):
            serve.delete(APPLICATION)
    serve.shutdown()
    ray.shutdown()
