"""The origin of a result: machine, version, commit, command, and the machine's load."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from manylora import __version__

ROOT = Path(__file__).parents[3]
_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, str]:
    """Return the facts for the head of a result file."""
    return {
        "processor": _processor(),
        "threads": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "version": __version__,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "src") else ""),
        "command": _command(),
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }


def _command() -> str:
    program, *rest = sys.argv
    return " ".join([*_named(Path(program)), *map(_here, rest)])


def _here(word: str) -> str:
    """Return an argument without a path of this machine: from the checkout on, or the last name alone."""
    path = Path(word)
    if path.is_absolute() and path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return path.name if path.is_absolute() or ".." in path.parts else word


def _named(program: Path) -> list[str]:
    """Return the command that starts this program in any checkout, without this machine's own paths."""
    if program.name == "manylora" or program.parent.name == "manylora":
        return ["manylora"]
    if program.is_absolute() and program.is_relative_to(ROOT):
        parts = program.relative_to(ROOT).with_suffix("").parts
        return ["python", "-m", ".".join(parts[:-1] if parts[-1] == "__main__" else parts)]
    return ["python", _here(str(program))]


def _processor() -> str:
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if line.count(":") >= 1)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(named.get("flags", "").split())
    name = f"{named.get('model name', 'unknown')} family {named.get('cpu family', '?')} model {named.get('model', '?')}"
    return f"{name}, {' '.join(flag for flag in _FLAGS if flag in flags)}"


def _git(*arguments: str) -> str:
    """Return the output of a git command; empty outside a checkout."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return found.stdout.strip()
