"""The seclusion of a process that renders foreign templates: no file, network or other process, bounded memory.

Linux only; elsewhere the limits of resources alone hold. The process imports all its modules before.
"""

import ctypes
import platform
import resource
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
_EPERM = 1
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: load a word; jump if it equals; return
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in the kernel's `struct seccomp_data`
_INSTRUCTION = struct.Struct("<HBBI")

# The calls that a running interpreter makes: memory, signals, locks, the clock, and its two pipes.
_ALLOWED = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0,
            "write": 1,
            "close": 3,
            "fstat": 5,
            "poll": 7,
            "lseek": 8,
            "mmap": 9,
            "mprotect": 10,
            "munmap": 11,
            "brk": 12,
            "rt_sigaction": 13,
            "rt_sigprocmask": 14,
            "rt_sigreturn": 15,
            "sched_yield": 24,
            "mremap": 25,
            "madvise": 28,
            "setitimer": 38,
            "getpid": 39,
            "exit": 60,
            "gettimeofday": 96,
            "sigaltstack": 131,
            "gettid": 186,
            "futex": 202,
            "restart_syscall": 219,
            "clock_gettime": 228,
            "exit_group": 231,
            "getrandom": 318,
            "rseq": 334,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "close": 57,
            "lseek": 62,
            "read": 63,
            "write": 64,
            "ppoll": 73,
            "fstat": 80,
            "exit": 93,
            "exit_group": 94,
            "futex": 98,
            "setitimer": 103,
            "clock_gettime": 113,
            "sched_yield": 124,
            "restart_syscall": 128,
            "sigaltstack": 132,
            "rt_sigaction": 134,
            "rt_sigprocmask": 135,
            "rt_sigreturn": 139,
            "gettimeofday": 169,
            "getpid": 172,
            "gettid": 178,
            "brk": 214,
            "munmap": 215,
            "mremap": 216,
            "mmap": 222,
            "mprotect": 226,
            "madvise": 233,
            "getrandom": 278,
            "rseq": 293,
        },
    ),
}


def seclude(memory_bytes: int) -> bool:
    """Seclude this process for good. Return whether the kernel filters its calls; the limits hold in any case.

    memory_bytes  bound of private memory; an allocation beyond it fails with `MemoryError`
    """
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))  # open descriptors stay open; no file and no socket can be opened
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]  # an address has more bits than an int
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if platform.machine() not in _ALLOWED:
        return False
    program = _filter(*_ALLOWED[platform.machine()])
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    holder = ctypes.create_string_buffer(head, len(head))
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(holder), 0, 0) == 0)


def _filter(architecture: int, allowed: dict[str, int]) -> bytes:
    """Return a BPF program: a call of another architecture kills the process, a forbidden one fails with EPERM."""
    lines = [
        _INSTRUCTION.pack(_LOAD, 0, 0, _ARCHITECTURE_AT),
        _INSTRUCTION.pack(_EQUAL, 1, 0, architecture),
        _INSTRUCTION.pack(_RETURN, 0, 0, _KILL),
        _INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER_AT),
    ]
    for left, number in zip(range(len(allowed), 0, -1), allowed.values(), strict=True):
        lines.append(_INSTRUCTION.pack(_EQUAL, left, 0, number))  # jump past the other calls and the refusal
    lines.append(_INSTRUCTION.pack(_RETURN, 0, 0, _ERRNO | _EPERM))
    lines.append(_INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW))
    return b"".join(lines)
