"""`manylora` with loads done inside the engine's steps, as servers do that load where they decode: what that costs.

PYTHONPATH=src:. python -m benchmarks.faults.loads_in_a_step serve …
"""

from manylora.adapters.ingest import process as ingest
from manylora.adapters.store import store
from manylora.cli import main, settings
from manylora.wiring import engine as build

FACTORY = "benchmarks.faults.loads_in_a_step:build_engine"


def build_engine(*arguments: object, **named: object) -> object:
    """As `manylora.wiring.engine.build_engine`, with a store that does each load to its end when it begins it."""
    store.ProcessIngest = ingest.InlineIngest  # type: ignore[assignment, misc]
    return build.build_engine(*arguments, **named)  # type: ignore[arg-type]


if __name__ == "__main__":
    settings.FACTORY = FACTORY
    main()
