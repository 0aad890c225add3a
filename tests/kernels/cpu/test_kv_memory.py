"""Memory of KV blocks: the system provides it as it is written, and takes back what is discarded."""

from pathlib import Path

import pytest
import torch

from manylora.kernels.cpu.kv import CpuKv
from manylora.kernels.reference import ReferenceKernels
from tests.kernels.cases import BACK_ENDS, NATIVE

PAGE = 4096


@pytest.fixture(params=NATIVE)
def kv(request: pytest.FixtureRequest) -> CpuKv:
    kv = BACK_ENDS[request.param]().new_kv(layers=3, num_blocks=64, block_size=16, kv_heads=3, head_dim=64)
    assert isinstance(kv, CpuKv)
    return kv


def test_discarded_blocks_lose_their_memory_and_the_others_keep_their_content(kv: CpuKv) -> None:
    for part in (kv.keys, kv.values):
        part.fill_(1.0)
    assert kv.discard(20, 64)
    for part in (kv.keys, kv.values):
        layers = part.view(3, 64, -1)
        assert bool((layers[:, :20] == 1.0).all())
        lost = layers[:, 20:].reshape(3, -1)
        margin = PAGE // lost.element_size()  # a page shared with a block outside is kept
        assert not lost[:, margin:-margin].any(), "the pages read as zeros: their memory is gone"
        assert torch.count_nonzero(lost) <= 3 * 2 * margin


def test_discarded_blocks_can_be_written_again(kv: CpuKv) -> None:
    kv.discard(0, 64)
    kv.keys.fill_(2.0)
    assert bool((kv.keys == 2.0).all())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_cache_takes_memory_as_it_is_written_and_begins_with_zeros() -> None:
    kernels, before = BACK_ENDS["native-1"](), resident_bytes()
    kv = kernels.new_kv(layers=2, num_blocks=4096, block_size=16, kv_heads=4, head_dim=64)
    assert isinstance(kv, CpuKv)
    assert kv.num_bytes == 128 << 20
    assert resident_bytes() - before < 8 << 20
    assert not kv.keys[::4096].any()
    empty = resident_bytes()
    kv.values.fill_(1.0)
    assert resident_bytes() - empty > 48 << 20, "64 MiB were written, and the process may give back some others"


def test_the_reference_keeps_all_its_memory() -> None:
    kv = ReferenceKernels().new_kv(layers=1, num_blocks=4, block_size=16, kv_heads=1, head_dim=8)
    assert not kv.discard(0, 4)
