"""Failures of the operating system in one sentence: the file, the cause and the remedy."""

import errno
import os
import signal
import socket
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "give this user the right, or name another",
    errno.EPERM: "give this user the right, or name another",
    errno.ENOENT: "make it, or name another",
    errno.ENOTDIR: "a part of that path is a file: name another",
    errno.EISDIR: "name a file",
    errno.EEXIST: "move it away, or name another",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ELOOP: "its links lead in a circle: mend them",
    errno.EIO: "look whether the disk is whole",
    errno.EMFILE: "raise the number of open files of this process (`ulimit -n`)",
    errno.ENFILE: "raise the number of open files of the machine (`sysctl fs.file-max`)",
    errno.EAGAIN: "raise the number of processes and threads (`ulimit -u`, the control group's pids.max)",
    errno.ENOMEM: "give the process more memory",
}
_NO_THREAD = "can't start new thread"
_NO_HOME = "home directory"  # in the errors of `Path.home` and `Path.expanduser`


def described(error: BaseException) -> str | None:
    """Return the meaning of a failure of the system, in one line; None for any other exception."""
    while isinstance(error, BaseExceptionGroup):  # of tasks: the first error represents all
        error = error.exceptions[0]
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return "there is no memory left: give the process more, or lower the budgets of engine and adapters"
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return f"no thread can be started: {_REMEDIES[errno.EAGAIN]}"
    if isinstance(error, RuntimeError) and _NO_HOME in str(error):
        return "there is no such home folder: set HOME, or write the path without `~`"
    if isinstance(error, UnicodeError):
        return f"a text or a path is not UTF-8: {error}"
    return None


def cause_of(error: OSError) -> str:
    """Return the cause and the remedy of a failure, for a message that names the file itself."""
    cause = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{cause}; {remedy}" if remedy else cause


def cannot_listen(error: OSError, host: str, port: int, group: str) -> str:
    """Return the reason why a server cannot listen at a free address; `group` of the settings has its host and port."""
    where = f"cannot listen on {host}:{port} ({group}.host, {group}.port)"
    if isinstance(error, socket.gaierror):
        return f"{where}: the name {host!r} does not resolve ({error.strerror}); give an address of this machine"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}: {error.strerror}; ports below 1024 take rights: set {group}.port to a higher one"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{where}: {error.strerror}; this machine has no such address: `ip addr` shows those it has"
    return f"{where}: {cause_of(error)}"


def ending(code: int | None) -> str:
    """Return the end of a sentence about a process that ended without a last frame; `code` is its return code."""
    if code is not None and code < 0:
        memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f": signal {-code} ({signal.strsignal(-code)}) ended it{memory}"
    return f" with exit code {code}; what it printed is above"


def _of_system(error: OSError) -> str:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    place = "".join(f"{Path(os.fsdecode(name))}: " for name in names[:1])
    return f"{place}{cause_of(error)}"
