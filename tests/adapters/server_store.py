"""A server's store on a folder of its own, with the real ingest process, and turns of an engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterState
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.packing.image import largest_file_bytes
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.image_folder import MAX_NAME_BYTES
from manylora.clock import Clock, SystemClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.wiring.adapter_store import open_store
from tests.adapters.adapter_files import TINY
from tests.support.waiting import wait_for


@contextmanager
def opened(
    folder: Path,
    *,
    tier: Path | None = None,
    shape: BaseShape = TINY,
    clock: Clock | None = None,
    disk_bytes: int = 1 << 24,
    **settings: object,
) -> Iterator[Store]:
    """A store over `folder / "root"` and whatever `settings` add; its images lie below `tier`, or `folder / "tier"`."""
    config = AdaptersConfig(
        roots=(str(folder / "root"),),
        bank_bytes=1 << 23,
        disk_bytes=disk_bytes,
        **settings,  # type: ignore[arg-type]  # each test's own
    )
    store = open_store(
        config=config, shape=shape, dtype="bfloat16", folder=tier or folder / "tier", clock=clock or SystemClock()
    )
    try:
        yield store
    finally:
        store.close()


def turn(store: Store, refs: Sequence[AdapterRef]) -> list[AdapterState]:
    states = [store.want(ref) for ref in refs]
    store.poll()
    return states


def all_placed(store: Store, refs: Sequence[AdapterRef]) -> Callable[[], bool]:
    return lambda: set(turn(store, refs)) == {AdapterState.ON_DEVICE}


def place(store: Store, *refs: AdapterRef) -> None:
    """Wait until all are on the device."""
    wait_for(all_placed(store, refs))


def fail(store: Store, ref: AdapterRef) -> Exception:
    """Wait until a load has failed, and return its error."""
    wait_for(lambda: turn(store, [ref]) == [AdapterState.FAILED])
    failure = store.failure(ref)
    assert failure is not None
    return failure


def bound_of(adapter: Path) -> int:
    """Bytes that the disk tier reserves for the load of an adapter."""
    weights_bytes = (adapter / "adapter_model.safetensors").stat().st_size
    return largest_file_bytes(weights_bytes, TINY, "bfloat16") + MAX_NAME_BYTES


def bytes_in(folder: Path) -> int:
    """Of every file there: images, names, and what is being written."""
    return sum(path.stat().st_size for path in folder.iterdir())
