"""Keep Python's garbage collector away from imported modules, which live as long as their process."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Run no collection within the block, which imports modules: a collection among them frees nothing.

    Among the modules of a server the collections take 0.2 s.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exempt_modules() -> None:
    """Exempt all objects of now from later collections; a process calls it once its modules are imported.

    A full collection then skips them while the process serves, and so does the interpreter's last one: without it the
    end of a process with torch or a web framework takes 0.3 s longer.
    """
    gc.freeze()
