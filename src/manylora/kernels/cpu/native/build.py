"""Compile the C++ kernels on first use, keep the library in a cache, and load it.

The cache key covers the sources, the compiler, its flags and the processor, so that neither a changed source nor an
unlike machine with the same home directory gets an old library. `library_cache.py` checks a kept library.
"""

import ctypes
import errno
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.config.environment import environment
from manylora.config.folders import cache_dir as default_cache_dir
from manylora.errors import NativeBuildFailed
from manylora.kernels.cpu.native.library_cache import (
    KeptFileUnusable,
    load_code,
    read_kept,
    remove_stale_scratch,
    scratch_folder,
    sealed,
)

SOURCE_DIR = Path(__file__).parent / "src"
HEADER_DIR = Path(__file__).parent / "include"
COMPILERS = ("g++", "c++", "clang++")
# Elsewhere than on x86 clang knows only the second one.
_THIS_PROCESSOR = "-march=native" if platform.machine() in {"x86_64", "AMD64"} else "-mcpu=native"
# Without contraction every fused multiply-add stands in the source, which fixes the order of accumulation.
FLAGS = ("-std=c++17", "-O3", _THIS_PROCESSOR, "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread")

NO_HEADERS: Mapping[str, str] = {}

_DISK_FULL = "No space left on device"

log = logging.getLogger(__name__)

_i64, _ptr, _f32, _f64 = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_double
SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    # name: (result, arguments), which the C++ sources describe. Operations have none: `ml_run` calls them.
    "ml_isa": (ctypes.c_char_p, ()),
    "ml_pool_new": (_ptr, (_i64, _i64)),
    "ml_pool_free": (None, (_ptr,)),
    "ml_packed_elements": (_i64, (_i64, _i64)),
    "ml_pack": (None, (_ptr, _ptr, _ptr, _i64, _i64)),
    "ml_bf16_packed_elements": (_i64, (_i64, _i64)),
    "ml_bf16_pack": (None, (_ptr, _ptr, _ptr, _i64, _i64)),
    "ml_int8_packed_bytes": (_i64, (_i64, _i64)),
    "ml_int8_pack": (None, (_ptr, _ptr, _ptr, _i64, _i64, _i64, _i64)),
    "ml_int4_packed_bytes": (_i64, (_i64, _i64, _i64, _i64)),
    "ml_int4_begin": (None, (_ptr, _i64, _i64, _i64, _i64)),
    "ml_int4_pack": (None, (_ptr, _ptr, _ptr, _ptr, _ptr, _ptr, _i64, _i64, _i64, _i64)),
    "ml_key_elements": (_i64, (_ptr,)),
    "ml_value_elements": (_i64, (_ptr,)),
    "ml_run": (_i64, (_ptr, _ptr, _i64, _ptr, _ptr)),
    "ml_sample": (_i64, (_ptr, _ptr, _i64, _i64, _ptr, _ptr, _ptr, _ptr)),
    "ml_mask_logits": (None, (_ptr, _ptr, _i64, _ptr, _i64, _ptr, _i64, _ptr)),
    "ml_advise_huge": (None, (_ptr, _i64)),
    "ml_discard": (ctypes.c_int, (_ptr, _i64)),
    "ml_measure_bandwidth": (_f64, (_ptr, _ptr, _i64, _i64)),
    "ml_measure_flops": (_f64, (_ptr, _i64)),
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The C++ files of a library, and the headers that are made for them, by file name."""

    files: Sequence[Path]
    headers: Mapping[str, str]


def load_library(
    cache_dir: Path | None = None, *, compiler: str | None = None, headers: Mapping[str, str] = NO_HEADERS
) -> ctypes.CDLL:
    """Return the compiled kernels, every function with its signature; compile them at the first use.

    A damaged kept library, or one that another user may have written, is compiled anew. Where no file can be kept, the
    library is compiled for this process alone.

    Args:
        cache_dir  parent of the folder of libraries; None: manylora's cache folder
        compiler   name or path of the C++ compiler; None: the first of g++, c++, clang++ that is installed
        headers    texts of headers by file name, which are written beside the sources for the build
    Raises: NativeBuildFailed. Complexity: ten seconds to two minutes the first time, milliseconds later.
    """
    path = _find_compiler(compiler)
    source = SourceFile(sorted(SOURCE_DIR.rglob("*.cpp")), headers)
    library = (cache_dir or default_cache_dir()) / "kernels" / f"kernels-{_cache_key(path, source)}.so"
    remove_stale_scratch(library.parent)
    try:
        return _bound(read_kept(library))
    except FileNotFoundError:
        log.info("compiling the native kernels with %s, once for this machine (ten seconds to two minutes)", path)
    except KeptFileUnusable as damage:
        log.info("compiling the native kernels anew (ten seconds to two minutes): %s is not used, %s", library, damage)
    code = _compile(path, source, library)
    try:
        return _bound(code)
    except KeptFileUnusable as error:
        raise NativeBuildFailed(
            f"the kernels that {path} compiled cannot be loaded ({error}): install g++ 9 or newer, or serve with "
            "model.kernels=reference, which is slow"
        ) from error


def _bound(code: bytes) -> ctypes.CDLL:
    """Return the library with the signatures of its functions. Raises `KeptFileUnusable`."""
    loaded = load_code(code)
    for name, (result, arguments) in SIGNATURES.items():
        try:
            function = getattr(loaded, name)
        except AttributeError as error:
            raise KeptFileUnusable(f"{name} is missing") from error
        function.restype, function.argtypes = result, arguments
    return loaded


def has_compiler() -> bool:
    """Return whether a C++ compiler is installed, without which no library is loaded."""
    return any(shutil.which(name) for name in COMPILERS)


def try_compiler(compiler: str | None = None) -> str:
    """Compile a library of one line with the flags of the kernels, load it, and return the compiler's path.

    Nothing is kept. Raises `NativeBuildFailed`.
    """
    path = _find_compiler(compiler)
    with scratch_folder(Path(tempfile.gettempdir())) as scratch:
        source, built = scratch / "trial.cpp", scratch / "trial.so"
        source.write_text('#include <cmath>\nextern "C" double trial(double x) { return std::fma(x, x, 1.0); }\n')
        said = _finish(_start([path, *FLAGS, "-shared", str(source), "-o", str(built)], scratch))
        if said is not None:
            raise NativeBuildFailed(f"{path} does not compile for this processor: {said.strip()}")
        try:
            load_code(built.read_bytes())
        except KeptFileUnusable as error:
            raise NativeBuildFailed(f"what {path} compiled cannot be loaded: {error}") from error
    return path


def _find_compiler(wanted: str | None) -> str:
    names = (wanted,) if wanted else COMPILERS
    for name in names:
        if path := shutil.which(name):
            return path
    raise NativeBuildFailed(
        f"no C++ compiler found (looked for {', '.join(names)}): install g++ 9 or newer, e.g. `apt-get install g++`"
    )


def _cache_key(compiler: str, source: SourceFile) -> str:
    key = hashlib.sha256()
    stat = Path(compiler).resolve().stat()  # a new compiler version is a new file
    for part in (compiler, str(stat.st_size), str(stat.st_mtime_ns), *FLAGS, _processor()):
        key.update(part.encode() + b"\0")
    texts = [(file.name, file.read_bytes()) for file in [*source.files, *sorted(HEADER_DIR.glob("*.h"))]]
    for name, text in [*texts, *((name, text.encode()) for name, text in source.headers.items())]:
        key.update(name.encode() + b"\0" + text + b"\0")
    return key.hexdigest()[:24]


def _processor() -> str:
    """Return the facts that `-march=native` depends on: model and instruction sets of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in wanted)


def _compile(compiler: str, source: SourceFile, library: Path) -> bytes:
    """Build the library, keep it if possible, and return its code.

    Raises `NativeBuildFailed` with the message of the compiler or of the system.
    """
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        return _build_in(library.parent, compiler, source, library)
    except OSError as error:
        refused = error
    try:
        code = _build_in(Path(tempfile.gettempdir()), compiler, source, None)
    except OSError as error:
        raise NativeBuildFailed(
            f"the native kernels can be compiled neither in {library.parent} ({refused.strerror}) nor in a temporary "
            f"folder ({error.strerror}): let model.cache_dir or TMPDIR name a folder with room that can be written"
        ) from error
    log.warning(
        "the native kernels cannot be kept as %s (%s), so each start compiles them: let model.cache_dir name a folder "
        "that can be written",
        library,
        refused.strerror,
    )
    return code


def _build_in(folder: Path, compiler: str, source: SourceFile, library: Path | None) -> bytes:
    """Build in a scratch folder below `folder` and return the code.

    The kept file appears by a rename, so that several processes may build at the same time. Raises `OSError`, also when
    the compiler finds the disk full; else as `_compile`.
    """
    with scratch_folder(folder) as scratch:
        for name, text in source.headers.items():
            (scratch / name).write_text(text)
        folders = ("-I", str(HEADER_DIR), "-I", str(scratch))
        objects = [scratch / f"{number}-{file.stem}.o" for number, file in enumerate(source.files)]
        # All files at once: the build takes as long as the slowest of them.
        steps = [
            _start([compiler, *FLAGS, *folders, "-c", str(file), "-o", str(target)], scratch)
            for file, target in zip(source.files, objects, strict=True)
        ]
        failures = [said for said in map(_finish, steps) if said]
        built = scratch / "kernels.so"
        if not failures:
            linked = _finish(_start([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(built)], scratch))
            failures = [linked] if linked else []
        if any(_DISK_FULL in said for said in failures):
            raise OSError(errno.ENOSPC, _DISK_FULL)
        if failures:
            raise NativeBuildFailed(f"{compiler} failed on the native kernels:\n{failures[0][-4000:]}")
        code = built.read_bytes()
        if library is not None:
            built.write_bytes(sealed(code))
            built.chmod(0o755)  # whatever the umask: no other user may write code that we run
            built.replace(library)  # atomic: the scratch folder is on the same file system
        return code


def _start(command: list[str], scratch: Path) -> subprocess.Popen[bytes]:
    """Start a step of the build, whose own temporary files lie in the folder of its results."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**environment(), "TMPDIR": str(scratch), "LC_ALL": "C"},
    )


def _finish(step: subprocess.Popen[bytes]) -> str | None:
    """Wait for a step; return the message of a failed one, or None."""
    _, said = step.communicate()
    return said.decode(errors="replace") or "no message" if step.returncode != 0 else None
