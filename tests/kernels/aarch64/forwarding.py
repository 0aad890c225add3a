"""A plugin of pytest: calls of native functions go to the process of `guest.cpp`.

`run.sh` starts pytest with the heap of `shared_heap.c` and names the guest's command in `KERNELS_GUEST`.
"""

import ctypes
import os
import shlex
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from manylora.kernels.cpu import backend, library
from manylora.kernels.cpu.native.build import SIGNATURES
from manylora.kernels.cpu.native.headers import made_headers
from manylora.kernels.table_of_operations import OPERATIONS

_CPP = {
    None: "void",
    ctypes.c_int64: "int64_t",
    ctypes.c_int: "int",
    ctypes.c_void_p: "void*",
    ctypes.c_double: "double",
    ctypes.c_char_p: "const char*",
}


def write_headers(folder: Path) -> None:
    """Write the headers of the library and of the guest into `folder`."""
    for name, text in made_headers(OPERATIONS).items():
        (folder / name).write_text(text)
    declared = [
        f"{_CPP[cast(None, result)]} {name}({', '.join(_CPP[cast(None, kind)] for kind in arguments)});"
        for name, (result, arguments) in SIGNATURES.items()
    ]
    listed = f"#define ML_FUNCTIONS(X) {' '.join(f'X({name})' for name in SIGNATURES)}"
    (folder / "functions.h").write_text("\n".join(["#pragma once", 'extern "C" {', *declared, "}", listed, ""]))


class Guest:
    """The process that has the compiled functions. Its calls come one at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._lock = threading.Lock()
        self.functions = SimpleNamespace(
            **{
                name: self._caller(number, result, arguments)
                for number, (name, (result, arguments)) in enumerate(SIGNATURES.items())
            }
        )

    def _caller(self, number: int, result: object, kinds: tuple[object, ...]) -> Callable[..., object]:
        assert all(kind in (ctypes.c_int64, ctypes.c_void_p) for kind in kinds)

        def call(*arguments: object) -> object:
            assert len(arguments) == len(kinds)
            words = [0 if argument is None else int(cast(int, argument)) for argument in arguments]
            reply = self._exchange(struct.pack(f"<qq{len(words)}q", number, len(words), *words))
            if result is ctypes.c_double:
                return struct.unpack("<d", reply)[0]
            word = int.from_bytes(reply, "little", signed=True)
            return ctypes.string_at(word) if result is ctypes.c_char_p else None if result is None else word

        return call

    def _exchange(self, request: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(request)
            reply = b""
            while len(reply) < 8:
                part = self._process.stdout.read(8 - len(reply))
                if not part:
                    pytest.exit(f"the guest ended with {self._process.wait()}", 1)
                reply += part
            return reply


def pytest_configure() -> None:
    """Give every `NativeLibrary` the guest's functions, and the cache of keys and values memory that both share."""
    # The processes that a test starts have heaps of their own.
    for name in ("LD_PRELOAD", "KERNELS_HEAP"):
        del os.environ[name]
    guest = Guest(shlex.split(os.environ["KERNELS_GUEST"]))
    for module, name, replacement in (
        (library, "load_library", lambda *_, **__: guest.functions),
        (backend, "untouched_zeros", lambda count, dtype: torch.zeros(count, dtype=dtype)),
    ):
        setattr(module, name, replacement)
    assert guest.functions.ml_isa() == b"neon"


if __name__ == "__main__":
    write_headers(Path(os.environ["KERNELS_HEADERS"]))
