"""The goals of a card, and their table: each with the worst of its figures, for each base."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

UNTIMED = {"of_tolerance", "differing", "not_replayed", "replayed"}
"""Fields of differences and counts, which a dry run has like another."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a figure: every line of `stage` with the field `field` has to keep it."""

    name: str
    stage: str
    field: str
    bound: float
    is_most: bool = False

    def worst(self, lines: Sequence[dict[str, Any]]) -> float | None:
        """Return the worst figure of the lines; None if no line has one."""
        found = [line[self.field] for line in lines if line["stage"] == self.stage and self.field in line]
        return None if not found else max(found) if self.is_most else min(found)

    @property
    def is_timed(self) -> bool:
        return self.field not in UNTIMED

    def is_met(self, figure: float) -> bool:
        return figure <= self.bound if self.is_most else figure >= self.bound


GOALS = (
    Goal("kernels: difference from float32 ÷ tolerance", "kernels", "of_tolerance", 1.0, is_most=True),
    Goal("steps: difference from float32 ÷ tolerance", "steps", "of_tolerance", 1.0, is_most=True),
    Goal("replays that differ from operations in a bit", "replays", "differing", 0, is_most=True),
    Goal("steps of any number of segments that were not replayed", "replays", "not_replayed", 0, is_most=True),
    Goal("one row: floor of the copy bandwidth ÷ its time", "one_row", "of_bandwidth", 0.75),
    Goal("rows with adapters: share of the roofline", "tax", "of_roofline", 0.92),
    Goal("one adapter, or up to 16 on q k v o ÷ without", "tax", "usual_throughput", 0.92),
    Goal("prompt: share of the matrix peak", "prompts", "of_matrix_peak", 0.7),
    Goal("prompt with an adapter ÷ without", "prompts", "throughput", 0.9),
    Goal("copies of adapters: share of the pinned bandwidth", "loads", "of_pinned", 0.8),
    Goal("99th percentile of gaps beside copies ÷ alone", "gaps", "p99_over_alone", 1.05, is_most=True),
    Goal("first token, adapter from host memory ÷ on the card", "cold", "over_hot", 1.05, is_most=True),
    Goal("many adapters ÷ few", "catalogue", "throughput", 0.95),
    Goal("share of decoding steps replayed", "catalogue", "replayed", 0.99),
)


def table(lines: Sequence[dict[str, Any]], *, is_dry: bool = False) -> list[dict[str, Any]]:
    """Return a row for each goal and base. `figure` and `is_met` are None where nothing was measured.

    Args:  is_dry  the times are an interpreter's: no goal of them is met or missed
    """
    bases = list(dict.fromkeys(line["base"] for line in lines if line["base"] is not None))
    rows = []
    for goal in GOALS:
        own = [line for line in lines if line["stage"] == goal.stage]
        for base in bases if all(line["base"] is not None for line in own) else [None]:
            figure = goal.worst([line for line in own if line["base"] == base])
            rows.append(
                {
                    "goal": goal.name,
                    "base": base,
                    "bound": f"{'≤' if goal.is_most else '≥'} {goal.bound:g}",
                    "figure": figure,
                    "is_met": None if figure is None or (is_dry and goal.is_timed) else goal.is_met(figure),
                }
            )
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    words = {None: "–", True: "met", False: "missed"}
    for row in rows:
        figure = "–" if row["figure"] is None else f"{row['figure']:.3g}"
        print(f"{row['goal']:58} {row['base'] or '':12} {row['bound']:>8} {figure:>8}  {words[row['is_met']]}")
