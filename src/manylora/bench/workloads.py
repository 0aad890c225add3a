"""The workloads of the project's published figures."""

from dataclasses import dataclass

MIXED_RANKS = (4, 8, 16, 64)
"""Ranks of mixed adapters, in equal parts."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload: tokens of prompt and output, and the number of streams that run at once."""

    prompt: int
    output: int
    streams: int


WORKLOADS = {
    "triage": Workload(100, 10, 32),
    "chat": Workload(128, 64, 32),
    "single": Workload(128, 64, 1),
    "long": Workload(2048, 32, 4),
}
