"""`manylora` whose engines count their tokens themselves: `python -m tests.ray_serve.serve_counted cluster serve …`."""

from manylora.bench.faults import counted_engine
from manylora.cli import main, settings

if __name__ == "__main__":
    settings.FACTORY = counted_engine.FACTORY
    main()
