"""Steps of an image's build and of an installation, run in folders outside of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PLACE = "/opt/manylora"
"""Folder of the environment in each image."""
NOT_RUN = ("apt-get ", "rm -rf /var/lib/apt/lists/", "useradd ", "install -d ")
"""Begins of the commands of an image that would change this machine."""


def steps(image: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, long lines joined, comments left out."""
    lines = [line for line in image.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last(image: Path, instruction: str) -> str:
    return [rest for word, rest in steps(image) if word == instruction][-1]


def variables(image: Path) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(last(image, "ENV")))


def surroundings() -> dict[str, str]:
    """The environment of a person's shell: without manylora's variables and without this run's own packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MANYLORA_", "PYTHON"))}


def make_environment(place: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    show_packages(place)


def show_packages(place: Path) -> None:
    """Let an environment find the packages that manylora needs in those of this run."""
    [folder] = (place / "lib").glob("python*/site-packages")
    present = [path for path in sys.path if path.endswith("site-packages")]
    (folder / "present.pth").write_text("\n".join(present) + "\n")


def build(image: Path, folder: Path) -> Path:
    """Run the instructions of an image's first stage in a folder. Return the environment that they make."""
    context, place = folder / "src", folder / "opt" / "manylora"
    context.mkdir(parents=True)
    arguments: dict[str, str] = {}
    ran: list[str] = []
    for word, rest in first_stage(image):
        if word == "ARG":
            arguments |= dict([rest.split("=", 1)])
        elif word == "COPY":
            *names, target = rest.split()
            for name in names:
                copy(ROOT / name, context / target)
        elif word == "RUN":
            for command in rest.split(" && "):
                if not command.startswith(NOT_RUN):
                    run_command(command.strip(), context, place, arguments)
                    ran.append(command)
    assert len(ran) >= 3, ran
    return place


def first_stage(image: Path) -> list[tuple[str, str]]:
    found = steps(image)
    ends = [number for number, (word, _) in enumerate(found) if word == "FROM"]
    return found[: ends[1]]


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def run_command(command: str, context: Path, place: Path, arguments: dict[str, str]) -> None:
    """Run one command of an image as its shell does, with the environment's folder in place of the image's."""
    own = re.sub(r"^python3? ", f"{sys.executable} ", command.replace(PLACE, str(place)))
    done = subprocess.run(
        ["sh", "-ec", own], cwd=context, env=surroundings() | arguments, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (own, done.stdout[-2000:], done.stderr[-2000:])
    if own.startswith(f"{sys.executable} -m venv"):
        show_packages(place)
