"""Copies of adapters beside the steps: no step waits for a copy, no copy for a step, and no row reads one too early."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.reader_threads import ThreadedReader
from manylora.engine.engine import Engine
from manylora.ids import Digest
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.copies import CardCopies
from tests.kernels.cuda.streams import FakeCuda
from tests.support.waiting import wait_for
from tests.wiring.test_card import card, folder, open_engine, request, run

__all__ = ["folder"]


class Copying:
    """An engine with a stream of copies that a test runs."""

    def __init__(self, folder: Path, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.engine = open_engine(folder, copying(cuda), "copying", adapters__bank_bytes=150_000)
        [self.stream] = cuda.streams
        self.store = cast(Store, self.engine._store)

    def run(self, name: AdapterRef) -> list[int]:
        """Return the tokens of a request, whose copies end as they begin."""
        [tokens] = run(self.engine, [request(3, name)], each_step=self.stream.run).values()
        return tokens


def copying(cuda: FakeCuda) -> TorchKernels:
    kernels = card()
    kernels.copies = lambda: CardCopies(torch.device("cpu"), cuda)  # type: ignore[method-assign]  # streams that wait
    return kernels


@pytest.fixture
def made(folder: Path) -> Iterator[Copying]:
    made = Copying(folder, FakeCuda())
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Iterator[Engine]:
    engine = open_engine(folder, card(), "copying-oracle")
    yield engine
    engine.close()


def ref(name: str) -> AdapterRef:
    return AdapterRef(SourceName.LOCAL, name)


def test_a_copy_is_recorded_on_its_own_stream_and_steps_are_ordered_after_its_end() -> None:
    cuda, source = FakeCuda(), torch.arange(6.0)
    copy = CardCopies(torch.device("cpu"), cuda).begin(source)
    assert cuda.log == ["copy on copies", "record on copies"]
    assert not copy.has_ended()
    assert copy.tensor.isnan().all()
    cuda.streams[0].run()
    assert copy.has_ended()
    assert copy.has_ended()
    assert cuda.log == ["copy on copies", "record on copies", "steps waits"]
    assert torch.equal(copy.tensor, source)


def test_pages_that_are_not_locked_are_not_unlocked_and_fail_no_later_copy(caplog: pytest.LogCaptureFixture) -> None:
    cuda, refused, locked = FakeCuda(), torch.arange(6.0), torch.arange(7.0)
    copies = CardCopies(torch.device("cpu"), cuda)
    cuda.refusals = 2
    copies.lock_pages(refused)
    copies.unlock_pages(refused)
    copies.lock_pages(refused)
    assert [record.getMessage() for record in caplog.records] == ["adapters.pages_not_locked bytes=24 code=2"]
    copy = copies.begin(refused)
    cuda.streams[0].run()
    assert copy.has_ended()
    assert torch.equal(copy.tensor, refused)
    copies.unlock_pages(refused)
    for _ in range(2):  # the address may come again
        copies.lock_pages(locked)
        assert list(cuda.locked) == [locked.data_ptr()]
        copies.unlock_pages(locked)
        copies.unlock_pages(locked)
        assert not cuda.locked


@pytest.mark.long
def test_running_requests_get_tokens_while_a_copy_is_under_way(made: Copying, oracle: Engine) -> None:
    base, own = request(1, None, new_tokens=12), request(3, ref("large"))
    tokens: dict[str, list[int]] = {base.id: [], own.id: []}
    made.engine.submit(base)
    made.engine.submit(own)
    while made.engine.has_work:
        for token in made.engine.step().tokens:
            tokens[token.request_id].append(token.token_id)
        if len(tokens[base.id]) == 12:
            made.stream.run()
        else:
            assert not tokens[own.id]
    assert tokens[own.id] == run(oracle, [own])[own.id]
    assert tokens[base.id] == run(oracle, [base])[base.id]
    assert "copies waits" not in made.cuda.log


def test_an_evicted_adapter_comes_back_by_a_copy_and_without_a_read(
    made: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [ref(name) for name in ("three", "large", "dora")]
    first = [made.run(name) for name in names]
    assert {AdapterState.IN_HOST, AdapterState.ON_DEVICE} <= {info.state for info in made.engine.infos()}
    reads: list[object] = []
    monkeypatch.setattr(ThreadedReader, "submit", lambda self, digest, path: reads.append(digest))
    copies = made.cuda.log.count("copy on copies")
    assert [made.run(name) for name in names] == first
    assert not reads
    assert made.cuda.log.count("copy on copies") > copies


def test_a_deletion_overwrites_the_card_and_the_host_tier_and_unlocks_its_pages(made: Copying) -> None:
    name = ref("large")
    made.run(name)
    made.run(ref("one"))
    digest = Digest(made.engine.info(name).digest)
    host = made.store._device.host
    assert host is not None
    image = host.get(digest)
    assert image is not None
    address = np.frombuffer(image.body, dtype=np.uint8).ctypes.data
    placed = made.store.weights[digest].image
    assert made.cuda.locked[address] == image.num_bytes
    assert placed.any()
    made.engine.manage(AdapterAction.DELETE, name)
    while made.engine.tend():
        made.stream.run()
    assert not placed.any()
    assert not np.frombuffer(image.body, dtype=np.uint8).any()
    assert address not in made.cuda.locked
    assert len(made.cuda.locked) == 1


def test_an_engine_that_ends_waits_for_its_copies_and_unlocks_the_pages_of_its_host_tier(folder: Path) -> None:
    made = Copying(folder, FakeCuda())
    made.run(ref("one"))
    made.engine.submit(request(3, ref("large")))

    def is_copied() -> bool:
        made.engine.step()
        return bool(made.stream.work)

    wait_for(is_copied)
    assert len(made.cuda.locked) == 2
    made.engine.close()
    assert not made.cuda.locked
    assert not made.stream.work
    assert made.cuda.log[-3:] == ["host waits for copies", "unlock", "unlock"]
