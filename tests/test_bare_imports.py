"""The packages that each part of the code does without: torch, Ray, Triton, and all that a bare GPU image lacks."""

import ast
import contextlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import SOURCE, tree_of
from tests.support.source.modules import imports, modules, relative, room

BARE_GPU_IMAGE = {
    "fastapi",
    "pydantic",
    "msgspec",
    "zmq",
    "ray",
    "sqlalchemy",
    "llguidance",
    "obstore",
    "httpx2",
    "starlette",
}
"""Packages a bare GPU image lacks: the engine's packages must import without them."""
GPU_PACKAGES = {"torch", "triton", "numpy", "safetensors", "tokenizers", "jinja2"}
"""Packages of an image for `benchmarks/gpu.py`."""


TRITON_FILES = tuple(
    path.relative_to(SOURCE).as_posix() for path in sorted((SOURCE / "kernels/cuda/jit").rglob("*.py"))
)
"""The files that import Triton, which a machine without a card may lack."""


RAY_FILES = (
    "ray_serve/application.py",
    "ray_serve/edge/ingress.py",
    "ray_serve/edge/router.py",
    "ray_serve/edge/serve_handles.py",
    "ray_serve/replica/deployment.py",
    "ray_serve/state_process.py",
)
"""The files that import Ray at their own import: its deployments, which Serve imports, and what they need."""


def blocked_import(modules_to_import: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    code = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} is blocked')
sys.meta_path.insert(0, Block())
for name in {modules_to_import!r}.split():
    importlib.import_module(name)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def dotted(*rooms: str, without: tuple[str, ...] = ()) -> str:
    files = [path for path in modules() if room(path) in rooms and relative(path) not in without]
    return " ".join(
        "manylora." + relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files
    )


def test_engine_and_benchmark_import_with_the_packages_of_a_gpu_image_alone() -> None:
    without = () if importlib.util.find_spec("triton") else TRITON_FILES
    names = dotted("kernels", "models", "adapters", "engine", without=without)
    result = blocked_import(f"{names} benchmarks.gpu benchmarks.card.stages", others_than(GPU_PACKAGES))
    assert result.returncode == 0, result.stderr


def others_than(allowed: set[str]) -> set[str]:
    """The top-level modules of all installed packages but some, those that these need, and the repository's own."""
    known, more = set[str](), {*allowed}
    while more:
        known.add(name := more.pop())
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            needed = [each for each in importlib.metadata.requires(name) or () if "extra ==" not in each]
            more |= {normal(re.split(r"[^A-Za-z0-9._-]", each)[0]) for each in needed} - known
    installed = importlib.metadata.packages_distributions()
    others = {name for name, owners in installed.items() if not known & set(map(normal, owners))}
    return others - {"manylora", "benchmarks", "tests"}


def normal(name: str) -> str:
    """The normal form of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_only_the_room_of_its_kernels_imports_triton() -> None:
    found = {relative(path) for path in modules() if any(name.split(".")[0] == "triton" for name in imports(path))}
    assert found <= set(TRITON_FILES)


def test_the_edge_and_the_tokenizer_import_without_torch() -> None:
    result = blocked_import(
        dotted("server", without=("server/engine_client/process/engine_main.py",)) + " manylora.models.text.tokenizer",
        {"torch"},
    )
    assert result.returncode == 0, result.stderr


def test_the_fleet_routes_without_torch_and_without_ray() -> None:
    result = blocked_import(dotted("cluster"), BARE_GPU_IMAGE | {"torch"})
    assert result.returncode == 0, result.stderr


def test_only_the_room_of_ray_serve_imports_ray_and_the_rest_of_it_does_without() -> None:
    found = {relative(path) for path in modules() if any(name.split(".")[0] == "ray" for name in imports(path))}
    at_import = {relative(path) for path in modules() if "ray" in _imported_at_once(path)}
    assert {name.split("/")[0] for name in found} == {"ray_serve"}
    assert at_import == set(RAY_FILES)
    result = blocked_import(dotted("ray_serve", "cli", without=RAY_FILES), {"ray"})
    assert result.returncode == 0, result.stderr


def _imported_at_once(path: Path) -> set[str]:
    """The packages that a file imports at its own import."""
    statements = [each for each in tree_of(path).body if isinstance(each, ast.Import | ast.ImportFrom)]
    names = [alias.name for each in statements if isinstance(each, ast.Import) for alias in each.names]
    names += [each.module or "" for each in statements if isinstance(each, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}
