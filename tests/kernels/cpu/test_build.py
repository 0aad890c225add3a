"""The native library is built once, by whoever comes first, and its absence is an answer and not a crash."""

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from manylora.config.groups.model import KERNELS
from manylora.errors import NativeBuildFailed
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.native import build
from manylora.kernels.cpu.native.build import load_library
from manylora.kernels.cpu.native.library_cache import sealed
from manylora.kernels.operands import KvCache, StepInput
from manylora.kernels.reference import ReferenceKernels
from manylora.kernels.select import select_kernels
from manylora.kernels.table_of_operations import Operations, Rows
from tests.conftest import missing
from tests.kernels.cases import native, random
from tests.kernels.eager import NO_ATTENTION, eager


@pytest.fixture
def tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a one-line library in place of the kernels, so that a build takes a fraction of a second."""
    folder = tmp_path / "sources"
    folder.mkdir()
    names = "\n".join(f"void {name}() {{}}" for name in build.SIGNATURES)
    (folder / "tiny.cpp").write_text(f'extern "C" {{\n{names}\n}}\n')
    monkeypatch.setattr(build, "SOURCE_DIR", folder)
    return folder


def libraries(cache_dir: Path) -> list[Path]:
    return sorted((cache_dir / "kernels").iterdir())


def in_memory() -> list[str]:
    """Descriptors of libraries that this process keeps in memory."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += [path.name] * ("manylora-kernels" in str(path.readlink()))
    return sorted(found)


def test_a_library_is_built_once_and_found_again(tiny_sources: Path, tmp_path: Path) -> None:
    load_library(tmp_path)
    (built,) = libraries(tmp_path)
    written = built.stat().st_mtime_ns
    kept = in_memory()
    load_library(tmp_path)
    assert in_memory() == kept
    assert [built] == libraries(tmp_path)
    assert built.stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["tiny.cpp", "products/tiny.cpp"])
def test_a_changed_source_is_another_library(name: str, tiny_sources: Path, tmp_path: Path) -> None:
    source = tiny_sources / name
    source.parent.mkdir(exist_ok=True)
    source.touch()
    load_library(tmp_path)
    source.write_text(source.read_text() + "// changed\n")
    load_library(tmp_path)
    assert len(libraries(tmp_path)) == 2


def test_a_source_that_does_not_compile_says_what_the_compiler_said(tiny_sources: Path, tmp_path: Path) -> None:
    (tiny_sources / "tiny.cpp").write_text("this is not C++")
    with pytest.raises(NativeBuildFailed, match=r"tiny\.cpp"):
        load_library(tmp_path)
    assert libraries(tmp_path) == []


def test_processes_that_build_at_the_same_time_all_get_a_whole_library(tiny_sources: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from manylora.kernels.cpu.native import build;"
        "build.SOURCE_DIR = Path(sys.argv[1]); build.load_library(Path(sys.argv[2])).ml_pool_new(0, 0)"
    )
    command = [sys.executable, "-c", program, str(tiny_sources), str(tmp_path)]
    racers = [subprocess.Popen(command) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    assert len(libraries(tmp_path)) == 1


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def in_place_of(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": rewritten(lambda data: data[:5000]),
    "empty": rewritten(lambda data: b""),
    "zeros inside": rewritten(lambda data: data[:4096] + bytes(2048) + data[6144:]),
    "another file": rewritten(lambda data: b"#!/bin/sh\n" * 100),
    "of an earlier version": rewritten(lambda data: data[:-48]),
    "missing symbols": rewritten(lambda data: sealed(data[:-48].replace(b"ml_pool_new", b"ml_pool_neu"))),
    "no library, yet sealed": rewritten(lambda data: sealed(b"no library")),
    "another user's": lambda file: os.chown(file, 4711, 4711),
    "writable by others": lambda file: file.chmod(0o757),
    "writable by a group": lambda file: file.chmod(0o775),
    "a link to nowhere": in_place_of(lambda file: file.symlink_to("nowhere")),
    "a pipe": in_place_of(os.mkfifo),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_library_that_cannot_be_trusted_is_built_anew_with_one_line(
    damage: str, tiny_sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "another user's" and os.geteuid() != 0:
        missing("giving a file to another user takes root")
    load_library(tmp_path)
    (built,) = libraries(tmp_path)
    DAMAGES[damage](built)
    with caplog.at_level(logging.INFO):
        load_library(tmp_path).ml_pool_new(0, 0)
    (line,) = caplog.messages
    assert str(built) in line or damage == "a link to nowhere"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_library(tmp_path)
    assert caplog.messages == []
    assert [built] == libraries(tmp_path)


def test_folders_of_killed_builds_go_and_those_in_use_stay(tiny_sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    for name in ("build-killed", "build-used"):
        (folder / name / "below").mkdir(parents=True)
    descriptor = os.open(folder / "build-used", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        load_library(tmp_path)
    finally:
        os.close(descriptor)
    assert [path.name for path in libraries(tmp_path) if path.is_dir()] == ["build-used"]


@pytest.mark.parametrize("blocked", ["folder", "file"])
def test_where_no_library_can_be_kept_one_is_built_for_this_process(
    blocked: str, tiny_sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    if blocked == "folder":
        cache.write_text("a file, where the cache should be")
    else:
        load_library(cache)
        (built,) = libraries(cache)
        built.unlink()
        (built / "full").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        load_library(cache).ml_pool_new(0, 0)
    (line,) = caplog.messages
    assert str(cache) in line
    assert "let model.cache_dir name a folder that can be written" in line


def test_a_cache_mounted_noexec_serves_all_the_same(tiny_sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    program = (
        "import sys; from pathlib import Path; from manylora.kernels.cpu.native import build;"
        "build.SOURCE_DIR = Path(sys.argv[1]); build.load_library(Path(sys.argv[2])).ml_pool_new(0, 0);"
        "build.load_library(Path(sys.argv[2])).ml_pool_new(0, 0); print('loaded')"
    )
    script = f'mount -t tmpfs -o noexec none {cache} || exit 77; exec "$0" -c "$1" "$2" {cache}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    run = subprocess.run(
        [*command, sys.executable, program, str(tiny_sources)], capture_output=True, text=True, check=False
    )
    if run.returncode == 77 or "unshare failed" in run.stderr:
        missing("a mount of one's own takes a user namespace")
    assert run.stdout == "loaded\n", run.stderr


def test_a_missing_compiler_is_named() -> None:
    with pytest.raises(NativeBuildFailed, match="no-such-compiler"):
        load_library(compiler="no-such-compiler")


def test_without_a_compiler_the_reference_serves_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        kernels = select_kernels("auto", 1, compiler="no-such-compiler")
    assert isinstance(kernels, ReferenceKernels)
    assert len(caplog.records) == 1
    assert "no-such-compiler" in caplog.text


@pytest.mark.parametrize("name", KERNELS)
def test_every_named_back_end_computes(name: str) -> None:
    kernels = select_kernels(name, 2)
    weight = random(1, 40, 24)
    packed = kernels.pack(weight)

    def forward(ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        return ops.logits(ops.take_rows(ops.embed(step.token_ids, packed), step.logit_rows), packed)

    ids, rows = torch.tensor([3, 39, 0]), torch.tensor([0, 2])
    kv = kernels.new_kv(layers=1, num_blocks=1, block_size=1, kv_heads=1, head_dim=8)
    found = kernels.compile(forward)(StepInput(ids, rows, NO_ATTENTION, kernels.prepare_lora(())), kv)
    assert torch.allclose(found, weight[ids[rows]] @ weight.T, rtol=2e-2, atol=2e-2 * 24)


@pytest.mark.parametrize("name", ["auto", "native"])
def test_quantised_weights_are_computed_by_the_native_kernels(name: str) -> None:
    kernels = select_kernels(name, 1, quantize="int8")
    assert (kernels.name, kernels.weight_dtype) == ("int8", torch.int8)
    assert isinstance(kernels, CpuKernels)


def test_an_unknown_back_end_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cuda-maybe"):
        select_kernels("cuda-maybe", 1)


def test_bf16_products_asked_for_where_there_are_none_fall_back_with_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeLibrary, "isa", "avx2")
    with caplog.at_level(logging.WARNING):
        asked, automatic = select_kernels("native-bf16", 1), select_kernels("auto", 1)
    assert (asked.name, automatic.name) == ("native", "native")
    reason = "this processor or the compiler has no bfloat16 products (AVX512_BF16)"
    assert [record.message for record in caplog.records] == [f"kernels.fallback to=native reason={reason}"]


def test_bf16_products_are_taken_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLibrary, "isa", "avx512-bf16")
    names = [select_kernels(name, 1).name for name in ("auto", "native-bf16", "native")]
    assert names == ["native-bf16", "native-bf16", "native"]


def test_the_pool_survives_its_makers_and_serves_again() -> None:
    weight, x = random(1, 640, 576), random(2, 40, 576)
    expected = eager(native(1))
    for _ in range(5):
        kernels = eager(NativeLibrary(4))
        assert torch.equal(kernels.linear(x, kernels.pack(weight)), expected.linear(x, expected.pack(weight)))


def test_the_measured_ceilings_are_plausible() -> None:
    library = native(2)
    assert library.isa in ("avx512-bf16", "avx512", "avx2", "portable")
    assert 1e8 < library.measure_bandwidth(megabytes=8, repeats=2) < 1e13
    assert 1e8 < library.measure_flops(repeats=1) < 1e14
