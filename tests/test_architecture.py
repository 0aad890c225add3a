"""The rules of the house, checked: layers, cycles, what may be imported where, and who may start threads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from manylora import errors
from tests.support.paths import ROOT

SOURCE = ROOT / "src" / "manylora"

LAYERS = {
    0: {
        "config",
        "config_file",
        "system_failures",
        "standard_streams",
        "service_variables",
        "setting_bounds",
        "errors",
        "ids",
        "adapter_ref",
        "adapter_state",
        "merging",
        "usage",
        "tenancy",
        "loopback",
        "origins",
        "connections",
        "renames",
        "printable",
        "api_page",
        "private_files",
        "dialects",
        "charging",
        "sharing",
        "scopes",
        "costs",
        "money",
        "clock",
        "telemetry",
        "resources",
        "memory_plan",
    },
    1: {"kernels"},
    2: {"models"},
    3: {"engine", "adapters"},
    4: {"server", "control", "console"},
    5: {"bench", "build", "cli", "cluster", "__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

MAY_READ_ENVIRONMENT = {"config.py"}
MAY_READ_CLOCK = {"clock.py"}
MAY_START_THREADS_OR_PROCESSES = {
    "bench/chaos.py",  # the processes that it kills
    "bench/machine.py",  # git
    "bench/network.py",  # a proxy beside what is measured
    "bench/object_storage.py",  # SeaweedFS
    "bench/servers.py",  # the servers that are measured
    "adapters/store.py",
    "adapters/checking.py",  # the child process of one upload, and its start
    "adapters/ingest.py",  # the child process itself: its loads run side by side
    "adapters/loaders.py",
    "kernels/native/build.py",  # the compiler
    "models/pull.py",  # pip
    "models/wheel.py",
    "control/database.py",  # Alembic is synchronous
    "control/reading.py",  # the process of heavy reads
    "server/link.py",
    "server/spool.py",
    "server/pool.py",
    "server/renderer.py",  # the processes of templates, and a thread to wait for each
    "standard_streams.py",  # the writer of log lines, which may block
}
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


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room(path: Path) -> str:
    """The top-level name a file belongs to: a folder, or the file itself."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file, parsed once for all tests that walk it."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top or inside a function; not those for type checking alone."""
    tree = tree_of(path)
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(path: Path, *names: str) -> list[str]:
    """Attribute accesses such as `os.environ` in a file."""
    tree = tree_of(path)
    found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [name for name in found if name in names]


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_imports_go_down_or_stay_in_the_room(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "manylora" or len(parts) < 2 or parts[1] == "__version__":
            continue
        target = parts[1]
        # The vocabulary and the top are one room each, made of single files.
        is_own_room = target == own or LAYER_OF[target] == LAYER_OF[own] in (0, 5)
        assert is_own_room or LAYER_OF[target] < LAYER_OF[own], f"{relative(path)} imports {name}"


def test_every_room_has_a_layer() -> None:
    assert {room(path) for path in modules()} - {"__init__"} <= set(LAYER_OF)


def test_there_are_no_import_cycles() -> None:
    graph = {
        path: {
            target
            for name in imports(path)
            if name.startswith("manylora.")
            for target in (
                SOURCE.joinpath(*name.split(".")[1:]).with_suffix(".py"),
                SOURCE.joinpath(*name.split(".")[1:], "__init__.py"),
            )
            if target.exists()
        }
        for path in modules()
    }
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " → ".join(relative(step) for step in (*trail, path))
        if path not in done:
            for target in graph[path]:
                visit(target, (*trail, path))
            done.add(path)

    for path in graph:
        visit(path, ())


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_only_the_named_files_reach_outside(path: Path) -> None:
    name = relative(path)
    if name not in MAY_READ_ENVIRONMENT:
        assert not uses(path, "os.environ", "os.getenv"), f"{name} reads the environment"
    if name not in MAY_READ_CLOCK:
        assert not uses(path, "time.time", "time.monotonic", "time.perf_counter", "time.sleep"), f"{name} reads a clock"
    if name not in MAY_START_THREADS_OR_PROCESSES:
        starters = {"threading", "subprocess", "multiprocessing", "concurrent.futures"}
        assert not starters & set(imports(path)), f"{name} may not start threads or processes"


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


def test_the_engine_imports_on_a_bare_gpu_image() -> None:
    result = blocked_import(dotted("kernels", "models", "adapters", "engine"), BARE_GPU_IMAGE)
    assert result.returncode == 0, result.stderr


def test_the_edge_and_the_tokenizer_import_without_torch() -> None:
    result = blocked_import(dotted("server", without=("server/worker.py",)) + " manylora.models.tokenizer", {"torch"})
    assert result.returncode == 0, result.stderr


def error_classes(root: type[errors.ManyloraError] = errors.ManyloraError) -> Iterator[type[errors.ManyloraError]]:
    for child in root.__subclasses__():
        yield child
        yield from error_classes(child)


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.__name__)
def test_every_error_has_its_row_and_stands_in_the_tree(kind: type[errors.ManyloraError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert 400 <= kind.row.native_status < 600
    assert 400 <= kind.row.openai_status < 600
    kinds = ("invalid_request_error", "server_error", "requests", "tokens", "insufficient_quota")
    assert kind.row.openai_type in kinds  # the last three are what OpenAI calls limits
    assert kind.__doc__


def test_every_path_named_in_the_architecture_page_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {word.strip("`.,;:()") for word in text.split() if word.startswith("`") and ".py" in word}
    missing = {name for name in named if not (SOURCE / name).exists() and not (ROOT / name).exists()}
    assert not missing


def test_every_setting_has_a_heading() -> None:
    from manylora.config import Config, leaves

    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [name for name in leaves(Config()) if f"### `{name}`" not in text]
    assert not missing


def test_every_error_has_a_heading() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    missing = sorted({kind.row.code for kind in error_classes() if f"### `{kind.row.code}`" not in text})
    assert not missing


def test_every_child_that_runs_python_is_isolated_from_the_working_directory() -> None:
    """The benchmarks' servers are what a person would start, in the working directory of that person."""
    for path in modules():
        if room(path) == "bench":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                assert ast.unparse(node.elts[1]) == "'-P'", f"{relative(path)}:{node.lineno}"
