"""Settings of dedicated deployments: where their replicas run, what they may take, and what a request to one awaits."""

from dataclasses import dataclass

from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """Replicas of dedicated deployments. The control plane reads it; `wait_s`, `max_waiting` are each server's own."""

    placer: str = setting(
        "off",
        choices=("off", "local"),
        text="""
        Where the control plane runs dedicated deployments. `local`: each replica is a `manylora serve` of its own, on
        the machine of the control plane. `off`: nowhere; they are recorded and priced, stay `pending`, and cost
        nothing.
        """,
    )
    host: str = setting(
        "127.0.0.1",
        text="""
        Address on which replicas listen, and at which the servers of this control plane reach them. An address that
        other machines reach needs keys (`server.auth`).
        """,
    )
    memory_bytes: int = setting(
        0,
        low=0,
        text="""
        Memory for all replicas together. A deployment whose `maxReplicas` do not fit beside those of the others is
        refused with the numbers. 0: the memory of the machine.
        """,
    )
    replica_bytes: int = setting(
        0,
        low=0,
        text="""
        Memory of one replica, its `engine.memory_bytes`. 0: the sum of the memory plan of its base, as
        `manylora plan` shows it.
        """,
    )
    hourly_nanousd: int = setting(
        1_210_000_000,
        low=0,
        text="""
        Price of an hour of one replica in nano-dollars; 1,210,000,000 is $1.21. It holds for deployments that are made
        or changed from then on, and the bill of a replica keeps the price of its start.
        """,
    )
    requests_per_replica: int = setting(
        16,
        low=1,
        text="""
        Requests under way or waiting, for each replica: with more of them a deployment gets a further one, up to its
        `maxReplicas`. A further one leaves after `cooldownTime` seconds without need of it.
        """,
    )
    start_timeout_s: float = setting(
        600.0,
        low=1,
        text="""
        Seconds in which a replica must become ready, the download of its base included. After them it is ended, and
        the next start comes after a pause that grows from 2 s to 5 min with each failure.
        """,
    )
    wait_s: float = setting(
        60.0,
        low=0,
        text="""
        Longest time in seconds that a request waits for a deployment without a ready replica, as after a scale to zero.
        Then, or at once with 0, it gets 503 `deployment_unavailable` with `Retry-After`; the start goes on.
        """,
    )
    max_waiting: int = setting(
        128,
        low=1,
        text="""
        Most requests of one tenant that wait at one server for deployments without a ready replica. A further one gets
        503 `overloaded` with `Retry-After`.
        """,
    )
    bill_s: float = setting(
        60.0,
        low=1,
        text="""
        Seconds between two bills of a running replica. Each is a row of the ledger with the whole seconds since the
        last; a deployment whose tenant has no credit left stops at the next bill.
        """,
    )
    orphan_s: float = setting(
        900.0,
        low=1,
        text="""
        Seconds without an answer of the control plane after which a replica ends itself. A control plane that starts
        again within that time finds its running replicas and keeps them.
        """,
    )
