"""Checks of the machine: compiler, instruction set, memory, disk. None of them leaves a file behind."""

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from manylora.cli.operate.findings import Finding, failed, ok, warning

if TYPE_CHECKING:
    from manylora.config.settings import Config

CPU_FLAGS_OF: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "x86_64": (("avx2", "fma"), ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")),
    "aarch64": (("asimd",), ("asimddp", "i8mm", "bf16")),
}
"""For each kind of processor: instruction sets without which the kernels are slow, and those that make them faster."""
LEAST_FREE_BYTES = 256 << 20
COMFORTABLE_BYTES = 4 << 30
"""Free bytes of a file system below which a folder of a server is full, or soon will be."""
NO_COMPILER_REMEDY = "install g++ 9 or newer, e.g. `apt-get install g++`"


def check_compiler(config: "Config") -> Finding:
    """Compile and load a program of a line with the flags of the kernels."""
    from manylora.errors import NativeBuildFailed
    from manylora.kernels.cpu.native.build import try_compiler

    if config.model.kernels == "reference":
        return warning(
            "compiler",
            "model.kernels is reference, which needs no compiler and is slow",
            "leave model.kernels at its default",
        )
    try:
        return ok("compiler", f"{try_compiler()} compiles for this processor")
    except NativeBuildFailed as error:
        return failed("compiler", error.message.splitlines()[0], NO_COMPILER_REMEDY)


def check_instruction_set(machine: str = platform.machine(), cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Compare the processor's instruction sets with those that the kernels have code for."""
    check = "instruction set"
    if machine not in CPU_FLAGS_OF:
        return warning(
            check, f"{machine}: the kernels have plain code for it", "take a processor of x86-64 or aarch64 for speed"
        )
    needed, faster = CPU_FLAGS_OF[machine]
    flags = _cpu_flags(cpuinfo)
    if missing := [name for name in needed if name not in flags]:
        return warning(
            check,
            f"{machine} without {', '.join(missing)}: the kernels run their plain code, several times slower",
            "in a virtual machine let the guest see the host's processor (`-cpu host`); else take a newer machine",
        )
    return ok(check, f"{machine} with {', '.join(name for name in (*needed, *faster) if name in flags)}")


def check_memory(config: "Config") -> Finding:
    """Plan the memory of the bases as a start does."""
    from manylora.errors import StartupError
    from manylora.system.byte_sizes import byte_text
    from manylora.wiring.bases import refuse_impossible_bases
    from manylora.wiring.planning import available_bytes

    if config.model.device.startswith("cuda") and not config.engine.memory_bytes:
        return ok("memory", f"the engine plans the memory of {config.model.device} at its start")
    try:
        refuse_impossible_bases(config)
    except StartupError as error:
        return failed(
            "memory",
            error.message,
            "`manylora plan` shows what fits: a smaller base, --quantize int4, a shorter --max-model-len, more memory",
        )
    bases = ", ".join((config.model.base, *config.model.more_bases))
    return ok("memory", f"{byte_text(available_bytes(config))} for {bases}")


def check_disk(config: "Config", *, free_bytes: int | None = None) -> Finding:
    """Write to each folder of a server, and look at the room of its file system.

    Args:  free_bytes  in place of the room of each file system
    """
    from manylora.system.byte_sizes import byte_text
    from manylora.system.failures import cause_of

    least: tuple[int, Path] | None = None
    for setting, folder in _folders(config).items():
        place = _existing(folder)
        try:
            _write(place)
            free = shutil.disk_usage(place).free if free_bytes is None else free_bytes
        except OSError as error:
            return failed("disk", f"{setting} {folder}: {error.strerror}", cause_of(error).partition("; ")[2])
        least = min(least or (free, place), (free, place))
        if free < LEAST_FREE_BYTES:
            return failed(
                "disk", f"{setting} {folder}: {byte_text(free)} free", f"make room there, or let {setting} name another"
            )
    assert least is not None
    found = f"every folder can be written; {byte_text(least[0])} free at {least[1]}"
    if least[0] < COMFORTABLE_BYTES:
        return warning("disk", found, "make room: bases, adapters, uploads and usage records are kept there")
    return ok("disk", found)


def _folders(config: "Config") -> dict[str, Path]:
    from manylora.config.folders import cache_dir, control_dir, metering_dir, registry_dir, storage_dir

    return {
        "model.cache_dir": cache_dir(config),
        "control.dir": control_dir(config),
        "metering.dir": metering_dir(config),
        "adapters.registry_dir": registry_dir(config),
        "storage.dir": storage_dir(config),
    }


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _write(folder: Path) -> None:
    """Write a file and delete it. Raises `OSError`."""
    file = folder / f".manylora-doctor-{os.getpid()}"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        file.unlink()


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    return frozenset(next((text.split() for name, _, text in named if name.strip() in ("flags", "Features")), ()))
