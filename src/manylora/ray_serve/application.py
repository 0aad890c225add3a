"""The application of Ray Serve: a deployment of engines for each base, and the edges before them."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.deployment import Application

from manylora.config.groups.ray import RayConfig
from manylora.config.settings import Config, load_config
from manylora.errors import ConfigInvalid
from manylora.http.loopback import is_loopback
from manylora.ray_serve.edge.ingress import Edge, EdgeOrder
from manylora.ray_serve.names import EDGE, FACTORY, POLICY, ROUTER, engine_name
from manylora.ray_serve.replica.deployment import EngineReplica, ReplicaOrder
from manylora.wiring.bases import named_bases

ANYWHERE = "0.0.0.0"
NUMBERS_S = 1.0
"""Seconds between two numbers of a replica for the policy."""
DRAIN_MARGIN_S = 10.0
"""Seconds beyond `server.drain_s` until Serve kills a replica: the time of the engine's own end."""


class BuildArguments(BaseModel):
    """The arguments of `build` in a Serve configuration: the path of a TOML file of settings on the head's node."""

    model_config = ConfigDict(extra="forbid")

    config: str


def build(args: BuildArguments) -> Application:
    """Return the application of a Serve configuration (`import_path: manylora.ray_serve.application:build`).

    Serve's proxies listen where the configuration says, so that the edge takes its address for a public one: without
    `server.auth` or `server.allow_open`, its callers need keys. Raises `ConfigInvalid`.
    """
    return application(as_public(load_config(Path(args.config))))


def as_public(config: Config) -> Config:
    """Return the settings of an edge that other machines reach: a loopback address gives way to all addresses."""
    if not is_loopback(config.server.host):
        return config
    return dataclasses.replace(config, server=dataclasses.replace(config.server, host=ANYWHERE))


def application(config: Config, factory: str = FACTORY) -> Application:
    """Return the application of the settings. Raises `ConfigInvalid` for edges that cannot share a control plane."""
    refuse_lone_edges(config)
    bases = named_bases(config)
    handles = [
        _engine(number, ReplicaOrder(factory=factory, config=base.config), config.ray, config)
        for number, base in enumerate(bases)
    ]
    return _edge(EdgeOrder(config=config, bases=tuple(base.config for base in bases)), config, handles)


def refuse_lone_edges(config: Config) -> None:
    """Raise `ConfigInvalid` for several edges that would each open a control plane of their own."""
    if config.ray.edges > 1 and not config.control.url:
        raise ConfigInvalid(
            f"ray.edges is {config.ray.edges}: control.url must name the control plane that they share "
            "(`manylora control`)"
        )
    if config.ray.edges > 1 and config.adapters.pushed_dir:
        raise ConfigInvalid(
            f"ray.edges is {config.ray.edges}: the folder of pushed adapters has one edge at a time; set "
            "adapters.pushed_bytes to 0"
        )


def engine_options(number: int, ray: RayConfig, config: Config) -> dict[str, Any]:
    """Return the options of the deployment of one base's engines, as Serve's decorator takes them."""
    options: dict[str, Any] = {
        "name": engine_name(number),
        "max_ongoing_requests": config.server.max_concurrent_requests + 64,  # questions come beside requests
        "graceful_shutdown_timeout_s": config.server.drain_s + DRAIN_MARGIN_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 30.0,
        "ray_actor_options": {"num_cpus": ray.engine_cpus, "num_gpus": ray.engine_cards},
        "request_router_config": RequestRouterConfig(
            request_router_class=ROUTER,
            request_router_kwargs={"edges": ray.edges},
            request_routing_stats_period_s=ray.signal_s,
        ),
    }
    if ray.least_engines == ray.most_engines:
        return {**options, "num_replicas": ray.most_engines}
    return {**options, "autoscaling_config": _scaling(ray)}


def _scaling(ray: RayConfig) -> AutoscalingConfig:
    """Return Serve's part of the scaling: the bounds, and numbers each second. The policy has the delays."""
    rules = {
        "least": ray.least_engines,
        "most": ray.most_engines,
        "target_backlog_s": ray.target_backlog_s,
        "calm_s": ray.calm_s,
        "idle_s": ray.idle_s,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60 reads no other setting of this interval
        return AutoscalingConfig(
            min_replicas=ray.least_engines,
            max_replicas=ray.most_engines,
            initial_replicas=ray.engines,
            metrics_interval_s=NUMBERS_S,
            look_back_period_s=2.5 * NUMBERS_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            downscale_to_zero_delay_s=0.0,
            policy=AutoscalingPolicy(policy_function=POLICY, policy_kwargs=rules),
        )


def _engine(number: int, order: ReplicaOrder, ray: RayConfig, config: Config) -> Application:
    deployment = serve.deployment(EngineReplica).options(**engine_options(number, ray, config))
    return deployment.bind(order)


def _edge(order: EdgeOrder, config: Config, handles: list[Application]) -> Application:
    deployment = serve.deployment(serve.ingress()(Edge)).options(
        name=EDGE,
        num_replicas=config.ray.edges,
        max_ongoing_requests=4 * config.server.max_concurrent_requests,  # the edge refuses by its own bounds first
        graceful_shutdown_timeout_s=config.server.drain_s + 2 * DRAIN_MARGIN_S,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": config.ray.edge_cpus},
    )
    return deployment.bind(order, *handles)
