"""The run of all public clients against one server, each in its own environment, for `make clients-test`."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE
from tests.clients.prepared import prepared_server
from tests.conftest import IS_CI
from tests.support.paths import ROOT

INSTALL_WAIT_S = SCRIPT_WAIT_S = 600
SCRIPTS = ROOT / "tests" / "clients" / "scripts"
SYSTEM = "curl"
"""The environment of a program of this machine, of whatever version."""
PINS = ROOT / "tests" / "clients" / "pins.txt"


@dataclass(frozen=True, slots=True)
class Client:
    """A client: its environment in `pins.txt`, and its script.

    waits  cases that ask for what the server refuses by name so far; they fail no run
    flags  further flags of its server
    """

    environment: str
    script: str
    waits: frozenset[str] = frozenset()
    flags: tuple[str, ...] = ()


CLIENTS = (
    Client("openai", "openai_python.py"),
    Client("openai-2", "openai_python.py"),
    Client("lorax", "lorax_client.py"),
    Client("predibase", "predibase_sdk.py"),
    Client("litellm", "litellm_providers.py"),
    Client("langchain", "langchain_chat.py"),
    Client("llama-index", "llama_index_llms.py"),
    Client("instructor", "instructor_modes.py"),
    Client("lm-eval", "lm_eval_completions.py", flags=("--set=model.kernels=native",)),
    Client("openai-npm", "openai_npm.mjs"),
    Client(SYSTEM, "curl_routes.py"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of the table.

    failed  names of the cases that failed
    absent  the reason for which the client did not run; empty: it ran
    """

    client: Client
    version: str = ""
    num_cases: int = 0
    failed: tuple[str, ...] = ()
    absent: str = ""


def pinned(environment: str) -> str:
    """Return the requirement of an environment's client, such as `openai==3.54.0`."""
    if environment == SYSTEM:
        return environment
    for line in PINS.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[:1] == [environment]:
            return words[1]
    raise AssertionError(f"{environment} is not in {PINS}")


def command_of(client: Client, facts: Path) -> list[str]:
    """Return the command that runs a client's script in its environment."""
    if client.script.endswith(".mjs"):
        return ["node", str(SCRIPTS / client.script), str(facts), str(ROOT / ".venvs" / client.environment)]
    if client.environment == SYSTEM:
        return [sys.executable, "-m", f"tests.clients.scripts.{client.script.removesuffix('.py')}", str(facts)]
    python = ROOT / ".venvs" / client.environment / "bin" / "python"
    return [str(python), "-m", f"tests.clients.scripts.{client.script.removesuffix('.py')}", str(facts)]


def run_script(client: Client, facts: Path, home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a client's script, with `words` behind the facts. It sees no proxy and no key of this machine's user."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return subprocess.run(
        [*command_of(client, facts), *words],
        cwd=ROOT,
        env={**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=SCRIPT_WAIT_S,
        check=False,
    )


def result_of(client: Client, facts: Path, home: Path, *words: str) -> Result:
    """Run a client's script, with `words` behind the facts, and read its report, which is its last line."""
    try:
        done = run_script(client, facts, home, *words)
        report = json.loads(done.stdout.strip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        return Result(client=client, num_cases=1, failed=(f"no end within {SCRIPT_WAIT_S} s",))
    except ValueError:
        sys.stderr.write(f"{done.stdout}\n{done.stderr}\n")
        return Result(client=client, num_cases=1, failed=("the script ended without a report",))
    failed = list(report["failed"])
    if report["version"] not in pinned(client.environment) and client.environment != SYSTEM:
        failed.append(f"version: .venvs/{client.environment} does not hold {pinned(client.environment)}, remove it")
    if failed:
        sys.stderr.write(f"{done.stderr}\n")
    return Result(
        client=client, version=report["version"], num_cases=len(report["cases"]), failed=tuple(map(str, failed))
    )


def installed(client: Client) -> str:
    """Make a client's environment; return the reason for which it cannot be made, or nothing."""
    target = f".venvs/{client.environment}/installed"
    if client.environment == SYSTEM:
        return "" if shutil.which(SYSTEM) else f"{SYSTEM} is not installed"
    if (ROOT / target).exists():
        return ""
    try:
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=INSTALL_WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not installed within {INSTALL_WAIT_S} s"
    said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    return "" if done.returncode == 0 else next((line for line in said if "rror" in line), "not installed")[:160]


def table(results: Sequence[Result]) -> str:
    """Return the results as a table, one row a client."""
    rows = [("client", "version", "cases", "passed", "")]
    for each in results:
        words = each.absent or ", ".join(
            f"{name} (waits)" if name in each.client.waits else name for name in each.failed
        )
        passed = "-" if each.absent else str(each.num_cases - len(each.failed))
        name = pinned(each.client.environment).partition("==")[0]
        rows.append(
            (each.client.environment if "@" in name else name, each.version, str(each.num_cases), passed, words)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(words: Sequence[str]) -> int:
    """Run the named clients, or all of them. Return 1 if a case failed.

    An environment that cannot be made is a row of the table: a machine without a network runs what it has. CI has the
    index of Python packages, so that it fails without one of those.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environments", nargs="*", choices=[[], *(client.environment for client in CLIENTS)])
    chosen = parser.parse_args(words).environments
    clients = [client for client in CLIENTS if not chosen or client.environment in chosen]
    absent = {client: reason for client in clients if (reason := installed(client))}
    results = [Result(client=client, absent=reason) for client, reason in absent.items()]
    present = [client for client in clients if client not in absent]
    base_dir, demo_root = cache_dir() / "bases" / DEFAULT_BASE, ROOT / "examples" / "adapters"
    for flags in dict.fromkeys(client.flags for client in present):
        with tempfile.TemporaryDirectory() as folder:
            (home := Path(folder) / "home").mkdir()
            (state := Path(folder) / "server").mkdir()
            with prepared_server(state, base_dir, demo_root, flags) as facts:
                results += [result_of(client, facts, home) for client in present if client.flags == flags]
    sys.stdout.write(f"{table(results)}\n")
    is_lacking = IS_CI and any(client.script.endswith(".py") for client in absent)
    return 1 if is_lacking or any(set(result.failed) - result.client.waits for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
