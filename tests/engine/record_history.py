"""Writes `recorded_history.json`: a load with preemptions, aborts and cold adapters, and the plans it gets today."""

import dataclasses
import json
import random

from tests.engine.simulation.model import VOCAB
from tests.engine.test_laws import ADAPTERS, HISTORY, RequestState, Shape, play

SEED = 7


def main() -> None:
    """Keep the load short enough to read and long enough to reach every branch of a plan."""
    dice = random.Random(SEED)
    load = [
        RequestState(
            step=index // 2,
            prompt=tuple(dice.randrange(VOCAB) for _ in range(dice.randint(1, 36))),
            adapter=dice.choice(ADAPTERS),
            flow=dice.choice("abc"),
            salt=dice.choice("xy"),
            budget=dice.randint(1, 24),
            abort_at=dice.choice((None, None, None, 9)),
        )
        for index in range(16)
    ]
    shape = Shape(num_blocks=20, max_rows=16, max_running=5, capacity=2, polls_to_load=3, guess_tokens=4, guess_width=3)
    world = shape.world()
    play(world, load)
    stats = world.engine.stats()
    assert stats.preemptions, "a history without preemption shows too little"
    assert stats.accepted_tokens, "a history without an accepted draft token shows too little"
    record = {
        "shape": dataclasses.asdict(shape),
        "load": [dataclasses.asdict(arrival) for arrival in load],
        "plans": [dataclasses.astuple(plan) for plan in world.executor.plans],
    }
    lines = [f' "{key}": {json.dumps(value)}' for key, value in record.items() if key != "plans"]
    plans = ",\n  ".join(json.dumps(plan) for plan in record["plans"])
    HISTORY.write_text("{\n" + ",\n".join(lines) + ',\n "plans": [\n  ' + plans + "\n ]\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
