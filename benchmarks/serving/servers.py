"""The peers, where `benchmarks/peers/install.py` has installed them: how each is started and told of its adapters."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from manylora.bench.servers import Fields, Server
from manylora.config.folders import cache_dir

MAX_STREAMS = 32
MAX_TOKENS = 2304
"""Of one stream: the longest prompt of the workloads, its reply, and the blocks that llama.cpp rounds up to."""


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
            **os.environ,
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
        command += ["--parallel", str(MAX_STREAMS), "--ctx-size", str(MAX_TOKENS * MAX_STREAMS), "--no-webui"]
        command += ["--threads", str(len(os.sched_getaffinity(0)))]
        if adapters:
            files = ",".join(str(self._converted(adapter, base)) for adapter in adapters)
            command += ["--lora", files, "--lora-init-without-apply"]
        return command

    def environment(self) -> Mapping[str, str]:
        return os.environ

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


def installed_peers(folder: Path) -> list[Server]:
    """The peers found below `folder`, where the install script put them."""
    found: list[Server] = []
    if (folder / "vllm" / "bin" / "python").exists():
        found += [Vllm(folder / "vllm"), Vllm(folder / "vllm", "float32")]
    if (folder / "llama" / "out" / "bin" / "llama-server").exists():
        found.append(LlamaCpp(folder / "llama"))
    return found
