"""`manylora` with loads done inside the engine's steps, as servers do that load where they decode: what that costs.

PYTHONPATH=src:. python -m benchmarks.loads_in_a_step serve …
"""

from manylora import build
from manylora.adapters import ingest, store
from manylora.cli import main, settings

FACTORY = "benchmarks.loads_in_a_step:build_engine"


def build_engine(*arguments: object, **named: object) -> object:
    """As `manylora.build.build_engine`, with a store that does each load to its end when it begins it."""
    store.ProcessIngest = ingest.InlineIngest  # type: ignore[assignment, misc]
    return build.build_engine(*arguments, **named)  # type: ignore[arg-type]


if __name__ == "__main__":
    settings.FACTORY = FACTORY
    main()
