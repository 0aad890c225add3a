"""The number of replicas, as Ray Serve asks for it: the adapter of `cluster/scaling.py` to Serve's context.

Serve imports the class by its name and calls an object of it in its controller. Nothing here imports Ray.
"""

from typing import Any, Protocol

from manylora.cluster.scaling import FleetLoad, ScalingRules, ScalingState, wanted_replicas


class ScalingContext(Protocol):
    """The fields of Serve's `AutoscalingContext` that the policy reads."""

    @property
    def target_num_replicas(self) -> int: ...  # those that are starting included, unlike the current number

    @property
    def total_queued_requests(self) -> float: ...

    @property
    def aggregated_metrics(self) -> Any: ...  # name → replica → number, or None before the first push

    @property
    def policy_state(self) -> Any: ...

    @property
    def current_time(self) -> float | None: ...


class TokenBacklog:
    """The policy: seconds of waiting work for each replica, and thrash of the banks.

    Args:
        least, most        bounds of the number of replicas, as in the autoscaling configuration beside it
        target_backlog_s, calm_s, idle_s  as in `ScalingRules`
        queued_tokens      tokens of a call that waits at an edge for a first replica
        tokens_per_s       speed of a replica before any has reported one
    """

    def __init__(
        self,
        least: int = 0,
        most: int = 8,
        target_backlog_s: float = 2.0,
        calm_s: float = 60.0,
        idle_s: float = 300.0,
        queued_tokens: float = 256.0,
        tokens_per_s: float = 200.0,
    ) -> None:
        self._rules = ScalingRules(
            least=least, most=most, target_backlog_s=target_backlog_s, calm_s=calm_s, idle_s=idle_s
        )
        self._queued_tokens = queued_tokens
        self._tokens_per_s = tokens_per_s

    def __call__(self, ctx: ScalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and the state for the next call in a form that Serve keeps."""
        before = dict(ctx.policy_state or {})
        now_s = float(ctx.current_time or 0.0)
        elapsed_s = max(0.0, now_s - float(before.get("now_s", now_s)))
        state = ScalingState(float(before.get("calm_s", 0.0)), float(before.get("idle_s", 0.0)))
        wanted, after = wanted_replicas(self._load(ctx), state, elapsed_s, self._rules)
        return wanted, {"now_s": now_s, "calm_s": after.calm_s, "idle_s": after.idle_s}

    def _load(self, ctx: ScalingContext) -> FleetLoad:
        metrics = ctx.aggregated_metrics or {}
        speeds = [float(speed) for speed in metrics.get("tokens_per_s", {}).values() if speed]
        thrash = [float(ratio) for ratio in metrics.get("thrash", {}).values()]
        shares = [float(share) for share in metrics.get("load_share", {}).values()]
        waiting = sum(map(float, metrics.get("backlog_tokens", {}).values()))
        return FleetLoad(
            replicas=ctx.target_num_replicas,
            backlog_tokens=waiting + float(ctx.total_queued_requests) * self._queued_tokens,
            tokens_per_s=_mean(speeds) or self._tokens_per_s,
            thrash=_mean(thrash),
            load_share=_mean(shares),
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
