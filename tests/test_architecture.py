"""The rules of the code, checked: layers, cycles, what may be imported where, and who may start threads."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora import errors
from tests.support.durations import listed
from tests.support.paths import ROOT, SOURCE, files_by_room, tree_of
from tests.support.rooms import PAGE, with_rooms
from tests.support.source.modules import attributes, imports, module_of, modules, relative, room, sub_room

FLOORS: dict[str, list[set[str]]] = {
    "": [
        {"errors", "ids", "clock", "money", "rollouts", "sharing", "charging"},
        {"failure", "merging", "usage", "system"},
        {"adapter_ref", "allowances", "mixing", "stored", "tenancy"},
        {"adapter_state", "config"},
        {"http"},
        {"kernels"},
        {"models"},
        {"engine", "adapters"},
        {"server", "control", "console"},
        {"cluster", "wiring"},
        {"fleet"},
        {"bench", "ray_serve"},
        {"cli"},
        {"__main__"},
    ],
    "kernels": [
        {"storage_form"},
        {"captures", "collectives", "operation", "projections", "sampling", "weight_groups", "weight_rows"},
        {"adapter_layout"},
        {"lora_batch"},
        {"operands"},
        {"table_of_operations"},
        {"interface"},
        {"plain"},
        {"cpu/native", "reference"},
        {"cpu", "cuda"},
        {"cuda/jit/programs"},
        {"cuda/jit"},
        {"select"},
    ],
    "models": [
        {"config_fields"},
        {"experts", "read_ahead", "rope"},
        {"architectures"},
        {"spec"},
        {"checkpoints", "sizes", "tensor_parallel", "text"},
        {"expert_tensors"},
        {"gguf"},
        {"checkpoint_files"},
        {"fetch", "shares", "weight_source"},
        {"weights"},
        {"llama"},
    ],
    "engine": [
        {"activation", "adapter_port", "events", "prompt_lookup", "texts"},
        {"pooling"},
        {"request"},
        {"grammars", "logits_rules", "stopping"},
        {"ruled_logits", "scheduling"},
        {"execution", "limits", "waiting"},
        {"commits", "execution/ranks"},
        {"engine"},
    ],
    "adapters": [
        {"base_shape", "refusals"},
        {"peft", "report", "text"},
        {"packing", "sources"},
        {"jobs"},
        {"banks"},
        {"tiers"},
        {"ingest", "store"},
    ],
    "server": [
        {"access", "engine_client", "schemas", "tools"},
        {"engine_client/process", "http", "metering", "names", "observability", "schemas/lorax", "storage"},
        {"batches", "dedicated", "generation", "schemas/openai"},
        {"pushing"},
        {"routes"},
        {"routes/lorax", "routes/openai"},
        {"routes/openai/responses"},
        {"app/middleware"},
        {"app"},
    ],
    "control": [
        {"bases", "calendar", "printed_page", "storage", "storage/migrations/versions"},
        {"deployment_loads", "key_uses", "storage/migrations", "zones"},
        {"control"},
        {"wallet", "webhooks"},
        {"budgets"},
        {"rollouts", "tenants"},
        {"billing", "exports", "invoicing", "registry", "deployments", "stored"},
        {"evaluations"},
        {"edges", "http"},
        {"catalogue"},
        {"routes"},
        {"routes/edges", "routes/money", "routes/registry"},
        {"app"},
        {"process"},
    ],
    "console": [
        {"api", "figures", "forms", "visitors", "zones"},
        {"rendering", "repositories", "residency"},
        {"page"},
        {"pages"},
        {"application"},
    ],
    "cluster": [
        {"homes", "orders", "scaling", "spots"},
        {"demand", "views"},
        {"cost", "placement", "signals"},
        {"prefetching", "prefixes", "ranking"},
        {"steering"},
    ],
    "ray_serve": [
        {"each_replica", "items", "names", "scaling"},
        {"edge", "replica"},
        {"application"},
        {"local"},
        {"remote", "status"},
        {"state_process"},
    ],
    "fleet": [
        {"wire"},
        {"edge", "host"},
    ],
    "bench": [
        {"agreement", "machine", "processes", "random_adapters", "statistics", "steps", "workloads"},
        {"servers"},
        {"faults", "load", "profile"},
        {"suite"},
    ],
    "cli": [
        {"costs", "examples", "options", "pull", "remote", "settings"},
        {"catalogue"},
        {"plan_text"},
        {"bases", "bench", "billing", "cluster", "control", "cost", "generate", "operate", "plan", "serve"},
    ],
}
"""The rooms of each package, the lowest floor first: a room imports from the floors below it.

A room is a folder, or a file directly in a package. Rooms of one floor do not import each other.
"""
MOST_FILES = 15
MOST_LINES = 450
GROWING = {"src/manylora/control/storage/migrations/versions"}
"""Folders whose files are never changed or removed, one more for each change of the tables."""

MAY_READ_ENVIRONMENT = {"config/environment.py"}
MAY_READ_CLOCK = {"clock.py"}
MAY_START_THREADS_OR_PROCESSES = {
    "bench/faults/chaos_processes.py",  # the processes of a run with kills
    "bench/machine.py",  # git
    "bench/faults/network.py",  # a proxy beside what is measured
    "bench/faults/object_storage.py",  # SeaweedFS
    "bench/servers.py",  # the servers that are measured
    "adapters/tiers/reader_threads.py",
    "adapters/ingest/checking.py",  # the child process of one upload, and its start
    "adapters/ingest/process.py",  # the child process itself: its loads run side by side
    "adapters/ingest/client.py",
    "engine/grammars/vocabularies.py",  # a thread for each compilation, which cannot be stopped
    "engine/grammars/masks.py",  # a thread beside the forward pass
    "engine/grammars/trials.py",  # the process of trials, which can be stopped
    "engine/execution/ranks/processes.py",  # the other ranks
    "kernels/cpu/native/build.py",  # the compiler
    "models/fetch/pull.py",  # pip
    "models/read_ahead.py",  # slices of a base that are read beside their packing
    "control/storage/database.py",  # Alembic is synchronous
    "control/billing/heavy_read_client.py",  # the process of heavy reads
    "ray_serve/status.py",  # the process that asks a fleet, which ends without Ray's shutdown
    "server/engine_client/in_process.py",
    "server/engine_client/process/worker.py",
    "server/metering/spool.py",
    "server/names/adapter_resolver.py",  # a slow file system delays only requests whose names need it
    "server/generation/models.py",  # threads for the tokenizer
    "server/generation/template_renderer.py",  # the processes of templates, and a thread to wait for each
    "wiring/placer/local_placer.py",  # the replicas of dedicated deployments
    "wiring/rank_main.py",  # a thread that waits for the end of rank 0
    "wiring/llm.py",  # the event loop of a program that has none
    "system/freed_memory.py",  # the return of freed memory once a minute
    "system/standard_streams.py",  # the writer of log lines, which may block
    "system/log_lines.py",  # the hook for exceptions of threads; it starts none
}


def floor_of(package: str, name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS[package]) if name in floor)


@pytest.mark.parametrize("room", files_by_room())
def test_imports_go_down_or_stay_in_the_room(room: str) -> None:
    for path in files_by_room()[room]:
        assert_imports_go_down(path)


def assert_imports_go_down(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == SOURCE:
        return
    own = relative(path).removesuffix(".py").removesuffix("/__init__")
    for name in imports(path):
        target = module_of(name)
        if target is None:
            continue
        package = own.split("/")[0]
        if package == target.split("/")[0]:
            if package not in FLOORS or own == package:
                continue  # a room of single files, or the package's own entrance
            ours, theirs, where = sub_room(package, own), sub_room(package, target), package
        else:
            ours, theirs, where = package, target.split("/")[0], ""
        is_allowed = ours == theirs or floor_of(where, theirs) < floor_of(where, ours)
        assert is_allowed, f"{relative(path)} imports {name}"


def test_the_floors_name_every_room_and_nothing_else() -> None:
    found: dict[str, set[str]] = {package: set() for package in FLOORS}
    for path in modules():
        own = relative(path).removesuffix(".py")
        if own != "__init__":
            found[""].add(own.split("/")[0])
        if own.split("/")[0] in found and not own.endswith("__init__"):
            found[own.split("/")[0]].add(sub_room(own.split("/")[0], own))
    named = {package: set().union(*floors) for package, floors in FLOORS.items()}
    assert named == found


def test_the_lists_of_exceptions_name_files() -> None:
    named = MAY_READ_ENVIRONMENT | MAY_READ_CLOCK | MAY_START_THREADS_OR_PROCESSES
    assert sorted(name for name in named if not (SOURCE / name).is_file()) == []


def sources(*folders: str) -> list[Path]:
    """Files of code below the folders: Python, C++, shell."""
    kinds = {".py", ".cpp", ".h", ".sh"}
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds)


def test_no_folder_and_no_file_is_too_large() -> None:
    files = sources("src", "tests", "benchmarks", "examples")
    folders = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    large = {folder: number for folder, number in folders.items() if number > MOST_FILES and folder not in GROWING}
    assert large == {}
    lengths = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in sources("src/manylora")}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_a_class_name_has_one_meaning() -> None:
    homes: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(relative(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_the_list_of_slow_tests_names_files() -> None:
    assert (
        sorted({test.partition("::")[0] for test in listed() if not (ROOT / test.partition("::")[0]).is_file()}) == []
    )


def test_every_room_says_its_subject() -> None:
    entrances = [path for path in modules() if path.name == "__init__.py" and "migrations" not in path.parts]
    assert [relative(path) for path in entrances if not ast.get_docstring(tree_of(path))] == []
    folders = {path.parent for path in modules()} - {path.parent for path in entrances}
    assert sorted(relative(folder) for folder in folders if "migrations" not in folder.parts) == []


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


@pytest.mark.parametrize("room", files_by_room())
def test_only_the_named_files_reach_outside(room: str) -> None:
    for path in files_by_room()[room]:
        assert_is_named_if_it_reaches_outside(path)


def assert_is_named_if_it_reaches_outside(path: Path) -> None:
    name = relative(path)
    if name not in MAY_READ_ENVIRONMENT:
        assert attributes(path).isdisjoint({"os.environ", "os.getenv"}), f"{name} reads the environment"
    if name not in MAY_READ_CLOCK:
        clocks = {"time.time", "time.monotonic", "time.perf_counter", "time.sleep"}
        assert attributes(path).isdisjoint(clocks), f"{name} reads a clock"
    if name not in MAY_START_THREADS_OR_PROCESSES:
        starters = {"threading", "subprocess", "multiprocessing", "concurrent.futures"}
        assert not starters & set(imports(path)), f"{name} may not start threads or processes"


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


def test_every_home_in_the_glossary_exists() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    homes = re.findall(r"\| (?:`(\w+)` in )?`([\w/]+(?:\.py)?)` \|\n", text)
    assert len(homes) > 40
    missing = [
        (name, place)
        for name, place in homes
        if not (SOURCE / place).exists() or (name and f"class {name}" not in (SOURCE / place).read_text("utf-8"))
    ]
    assert missing == []


def test_the_architecture_page_has_a_sentence_for_each_room() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_rooms(page), "run `make pages`"


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
