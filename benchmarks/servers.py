"""Servers that a load can be put on: ours, and the peers where `benchmarks/peers/install.py` has installed them.

Each is started alone on a free port with its adapters, and stopped with every process it started.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from manylora.config import DEFAULT_BASE, cache_dir

START_WAIT_S = 600.0
STOP_WAIT_S = 30.0
MAX_STREAMS = 32

Fields = Mapping[str, object]
"""What a request names its model with: fields of its JSON body."""


class Server(Protocol):
    """How one program is started and how its requests name an adapter."""

    name: str

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        """The process that serves `base` and these adapters on the loopback interface; no adapters: LoRA is off."""

    def environment(self) -> Mapping[str, str]:
        """Variables it needs beside ours."""

    def base_fields(self, base: Path) -> Fields: ...

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields: ...


class Manylora:
    """`manylora serve`. Its adapters share one parent folder."""

    name = "manylora"

    def __init__(self, *settings: str) -> None:
        self._settings = settings

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        root = adapters[0].parent if adapters else None
        command = [sys.executable, "-m", "manylora", "serve", "--port", str(port), "--base", str(base)]
        command += [] if root is None else ["--adapter-root", str(root)]
        return [*command, *(part for setting in self._settings for part in ("--set", setting))]

    def environment(self) -> Mapping[str, str]:
        return {}

    def base_fields(self, base: Path) -> Fields:
        return {"model": ""}

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields:
        return {"model": adapters[index].name}


class Vllm:
    """vLLM's CPU build, with the variables and flags of its CPU guide: KV space, threads bound to cores.

    Without AVX-512 its bfloat16 products are slow, and float32 ones are what it does best: both can be measured.
    """

    def __init__(self, folder: Path, dtype: str = "bfloat16") -> None:
        self.name = "vLLM" if dtype == "bfloat16" else f"vLLM {dtype}"
        self._python = folder / "bin" / "python"
        self._dtype = dtype

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = [str(self._python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
        command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", self._dtype, "--max-model-len", "4096", "--max-num-seqs", str(MAX_STREAMS)]
        command += ["--no-enable-prefix-caching"]  # the prompts are all distinct
        if adapters:
            command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", "64", "--lora-modules"]
            command += [f"{adapter.name}={adapter}" for adapter in adapters]
        return command

    def environment(self) -> Mapping[str, str]:
        cores = sorted(os.sched_getaffinity(0))
        return {
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def base_fields(self, base: Path) -> Fields:
        return {"model": "base"}

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields:
        return {"model": adapters[index].name}


class LlamaCpp:
    """llama.cpp's server on bfloat16 GGUF files, made before the start; an adapter is named by its number."""

    name = "llama.cpp"

    def __init__(self, folder: Path) -> None:
        self._server = folder / "out" / "bin" / "llama-server"
        self._python = folder / "convert" / "bin" / "python"
        (sources,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
        self._sources = sources

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = [str(self._server), "-m", str(self._converted(base)), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--parallel", str(MAX_STREAMS), "--ctx-size", str(512 * MAX_STREAMS), "--no-webui"]
        command += ["--threads", str(len(os.sched_getaffinity(0)))]
        if adapters:
            files = ",".join(str(self._converted(adapter, base)) for adapter in adapters)
            command += ["--lora", files, "--lora-init-without-apply"]
        return command

    def environment(self) -> Mapping[str, str]:
        return {}

    def base_fields(self, base: Path) -> Fields:
        return {"cache_prompt": False}

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields:
        return {"cache_prompt": False, "lora": [{"id": index, "scale": 1.0}]}

    def _converted(self, folder: Path, base: Path | None = None) -> Path:
        """The GGUF of a base, or of an adapter of `base`; made once, by the converter in llama.cpp's sources."""
        target = Path(f"{folder}.bf16.gguf") if base else cache_dir() / "peers" / f"{folder.name}.bf16.gguf"
        if not target.exists():
            script = self._sources / ("convert_lora_to_gguf.py" if base else "convert_hf_to_gguf.py")
            named = ["--base", str(base)] if base else []
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [str(self._python), str(script), str(folder), "--outtype", "bf16", "--outfile", str(target), *named],
                check=True,
                capture_output=True,
            )
        return target


@dataclass(frozen=True)
class Running:
    """A started server: its address, its process and how long its first token took, in seconds from the start."""

    url: str
    process: "subprocess.Popen[bytes]"
    first_token_s: float


def installed_peers(folder: Path) -> list[Server]:
    """The peers found below `folder`, where the install script put them."""
    found: list[Server] = []
    if (folder / "vllm" / "bin" / "python").exists():
        found += [Vllm(folder / "vllm"), Vllm(folder / "vllm", "float32")]
    if (folder / "llama" / "out" / "bin" / "llama-server").exists():
        found.append(LlamaCpp(folder / "llama"))
    return found


def default_base() -> Path:
    """The folder of the default base, as `manylora pull` left it."""
    return cache_dir() / "bases" / DEFAULT_BASE


@contextmanager
def serving(server: Server, log: Path, *, base: Path | None = None, adapters: Sequence[Path] = ()) -> Iterator[Running]:
    """Start a server, wait for its first token, and stop it with all its processes at the end."""
    base = base or default_base()
    port = _free_port()
    command = server.command(port, base, adapters)
    begun_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **server.environment()},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _first_token(url, process, server.base_fields(base), log)
        yield Running(url, process, time.monotonic() - begun_s)
    finally:
        _stop(process)


def _first_token(url: str, process: "subprocess.Popen[bytes]", fields: Fields, log: Path) -> None:
    end_s = time.monotonic() + START_WAIT_S
    body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0, **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=START_WAIT_S):
                return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise SystemExit(f"{url} answered {error.code}: {error.read()[:500]!r}") from error
        except OSError:
            pass  # not listening yet
        time.sleep(0.05)
    raise SystemExit(f"the server did not start; its last words:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process to end, then end its whole session."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WAIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
