"""Settings of a fleet on Ray Serve."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """A fleet on Ray Serve: its edges and engines, and how they talk. `manylora serve` reads none of it."""

    mode: str = setting(
        "handle",
        choices=("handle", "direct"),
        text="""
        How edges reach engines. `handle`: each request is a streamed call of Ray Serve. `direct`: Ray starts, watches
        and scales the engines, and each edge talks to their own sockets (`fleet.secret_file` and the other settings of
        `[fleet]`).
        """,
    )
    edges: int = setting(
        1,
        low=1,
        high=1000,
        text="""
        Number of edges. More than one need a control plane at `control.url`.
        """,
    )
    engines: int = setting(
        1,
        low=0,
        high=10_000,
        text="""
        Replicas of each base at the start.
        """,
    )
    least_engines: int = setting(
        1,
        low=0,
        high=10_000,
        text="""
        Smallest number of replicas of a base. 0: an idle base has none, and the next request waits at its edge for one.
        """,
    )
    most_engines: int = setting(
        1,
        low=1,
        high=10_000,
        text="""
        Largest number of replicas of a base. The number follows the waiting tokens between both bounds.
        """,
    )
    engine_cpus: float = setting(
        1.0,
        low=0,
        text="""
        Processors that Ray reserves for a replica. `model.threads` is its number of threads.
        """,
    )
    engine_cards: float = setting(
        0.0,
        low=0,
        text="""
        Cards that Ray reserves for a replica.
        """,
    )
    edge_cpus: float = setting(
        0.5,
        low=0,
        text="""
        Processors that Ray reserves for an edge.
        """,
    )
    target_backlog_s: float = setting(
        2.0,
        low=0.01,
        text="""
        Seconds of waiting work for each replica above which a base gets further ones.
        """,
    )
    calm_s: float = setting(
        60.0,
        low=0,
        text="""
        Seconds of low load after which one replica is given back.
        """,
    )
    idle_s: float = setting(
        300.0,
        low=0,
        text="""
        Seconds without work after which the last replica is given back, if `ray.least_engines` is 0.
        """,
    )
    signal_s: float = setting(
        0.5,
        low=0.05,
        text="""
        Seconds between two signals of a replica to the routers: its backlog, speed and adapters.
        """,
    )
    coalesce_ms: float = setting(
        20.0,
        low=0,
        text="""
        Milliseconds for which the steps of a stream share one message. A first token never waits.
        """,
    )
    restart_s: float = setting(
        120.0,
        low=1,
        text="""
        Seconds without an engine process after which Ray replaces a replica.
        """,
    )
