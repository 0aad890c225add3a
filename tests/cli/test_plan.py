"""`manylora plan`: the plan of `serve`, its capacity, and refusals by name with exit code 1."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid, ManyloraError, MemoryPlanImpossible
from manylora.kernels.storage_form import BFLOAT16
from manylora.models.fetch.catalog import describe
from manylora.wiring.bases import server_bases
from manylora.wiring.llm import LLM
from manylora.wiring.memory_plan import ENGINE_BYTES, PROCESS_BYTES, base_sizes, plan_memory
from manylora.wiring.planning import refuse_impossible_plan

GIB = 1 << 30
_ONE_GIB = {"MANYLORA_ENGINE_MEMORY_BYTES": str(GIB)}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_MODEL_CACHE_DIR", str(tmp_path))


def plan(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


def fields(*words: str) -> dict[str, Any]:
    result = plan("--json", *words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return {"exit_code": result.exit_code, "stderr": result.stderr, **json.loads(result.stdout)}


def test_the_plan_is_the_one_of_serve(tmp_path: Path) -> None:
    found = fields("--base", "LLAMA-2-7B-CHAT", "--device-memory", "24GiB")
    config = load_config(flags={"model.base": "LLAMA-2-7B-CHAT", "engine.memory_bytes": 24 * GIB})
    spec = describe("Llama-2-7b-chat", tmp_path).spec
    served = plan_memory(config, base_sizes(config, spec, BFLOAT16), available_bytes=24 * GIB)
    assert {name: found["plan"][name] for name in served.__slots__} == {
        name: getattr(served, name) for name in served.__slots__
    }
    assert found["base"] == "Llama-2-7b-chat"
    assert (found["fits"], found["exit_code"], found["degree_needed"]) == (True, 0, 1)


def test_streams_are_those_whose_blocks_fit() -> None:
    found = fields("--base", "llama-2-7b", "--device-memory", "24GiB")
    rooms = {room["context"]: (room["planned"], room["most"]) for room in found["streams"]}
    assert rooms == {256: (64, 67), 1024: (16, 16), 4096: (4, 4)}


def test_a_stream_of_a_sliding_window_takes_that_window_alone() -> None:
    found = fields("--base", "mistral-7b-instruct", "--device-memory", "24GiB")
    rooms = {room["context"]: room["most"] for room in found["streams"]}
    assert rooms[32768] == rooms[8192] < rooms[2048]


def test_adapters_fill_the_bank() -> None:
    found = fields("--base", "llama-2-7b", "--device-memory", "24GiB")
    rooms = {(room["rank"], room["targets"]): (room["num_bytes"], room["number"]) for room in found["adapters"]}
    assert rooms[16, "all"] == (79_953_920, GIB // 79_953_920)
    assert rooms[8, "q,v"] == (8_388_608, 128)


def test_streams_that_are_asked_for_get_their_kv_cache_and_the_command(tmp_path: Path) -> None:
    words = ("--base", "llama-2-7b", "--device-memory", "24GiB", "--context", "1024", "--streams", "16")
    found = fields(*words)
    assert found["plan"]["kv_bytes"] == 16 * 1024 * 524_288
    assert found["streams"][-1] == {"context": 1024, "planned": 16, "most": 17}
    [command] = [line for line in plan(*words).stdout.splitlines() if line.startswith("manylora serve")]
    assert "--max-model-len 1024 --set engine.kv_bytes=8589934592" in command
    many = fields(*words[:-1], "100")
    assert (many["fits"], many["exit_code"]) == (False, 1)
    largest = int(many["stderr"].partition("the largest engine.kv_bytes that fits is ")[2].partition(";")[0])
    given = (*words[:-2], "--set")
    assert fields(*given, f"engine.kv_bytes={largest}")["fits"]
    assert not fields(*given, f"engine.kv_bytes={largest + 16 * 524_288}")["fits"]


def printed_command(*words: str) -> list[str]:
    """Return the words of the command that starts the plan; empty: the output has none."""
    result = plan(*words)
    assert result.exit_code == 0, result.output
    return next((shlex.split(line) for line in result.stdout.splitlines() if line.startswith("manylora serve")), [])


def test_the_command_has_the_settings_that_were_given(tmp_path: Path) -> None:
    file = tmp_path / "our settings.toml"
    file.write_text('[model]\nquantize = "int8"\n[server]\nport = 9000\n')
    words = ("--base", "llama-2-7b", "--device-memory", "24GiB", "--streams", "2", "--quantize", "int4")
    sets = ("--set", "engine.kv_bytes=4294967296", "--set", "adapters.roots=/srv/a b")
    command = printed_command(*words, "--config", str(file), *sets)
    assert command[command.index("--config") + 1] == str(file)
    assert command[command.index("--quantize") + 1] == "int4"
    assigned = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
    assert "adapters.roots=/srv/a b" in assigned
    assert [each for each in assigned if each.startswith("engine.kv_bytes")] == ["engine.kv_bytes=4294967296"]


def test_the_command_has_the_ranks() -> None:
    words = ("--base", "llama-2-7b", "--device-memory", "24GiB", "--streams", "2", "--tensor-parallel")
    assert "--tensor-parallel" not in printed_command(*words, "1")
    command = printed_command(*words, "2")
    assert command[command.index("--tensor-parallel") + 1] == "2"
    assert f"engine.memory_bytes={48 * GIB}" in command  # of both ranks


def bases_file(folder: Path, *more: str, lines: str = "") -> str:
    file = folder / "bases.toml"
    file.write_text(f'[model]\nbase = "llama-2-7b"\nmore_bases = {json.dumps(more)}\n{lines}\n')
    return str(file)


def test_several_bases_have_the_plans_of_serve_and_a_sum(tmp_path: Path) -> None:
    words = ("--base", "llama-2-7b", "--base", "zephyr-7b-beta", "--device-memory", "40GiB")
    found = fields(*words)
    flags: dict[str, Setting] = {"model.base": "llama-2-7b", "model.more_bases": ("zephyr-7b-beta",)}
    served = server_bases(load_config(flags=flags), 40 * GIB)
    assert [each["base"] for each in found["bases"]] == ["Llama-2-7b", "Zephyr-7b-beta"]
    for each, base in zip(found["bases"], served, strict=True):
        own = base.config.engine.memory_bytes
        of_serve = plan_memory(base.config, base_sizes(base.config, base.spec, BFLOAT16), available_bytes=own)
        assert each["plan"] == dataclasses.asdict(of_serve)
    assert found["memory_bytes"] in range(40 * GIB - 2, 40 * GIB + 1)
    assert (found["fits"], found["exit_code"]) == (True, 0)
    weights = [each["plan"]["weight_bytes"] for each in found["bases"]]
    assert found["part_bytes"]["weights"] == sum(weights)
    assert found["taken_bytes"] == sum(found["part_bytes"].values()) <= found["memory_bytes"]
    text = plan(*words).stdout
    assert text.count("memory available") == 2
    [total] = [line.split() for line in text.splitlines() if line.startswith("sum ")]
    assert total[3] == f"{sum(weights) / (1 << 20):.1f}"


def test_bases_that_no_memory_holds_together_are_refused_as_by_serve(tmp_path: Path) -> None:
    words = ("--base", "llama-2-7b", "--base", "zephyr-7b-beta")
    found = fields(*words, "--device-memory", "24GiB")
    assert (found["fits"], found["exit_code"], found["bases"]) == (False, 1, [])
    assert (
        "the memory cannot hold 2 bases: the weights, step buffers and processes of llama-2-7b 13" in found["why_not"]
    )
    assert found["why_not"] in found["stderr"]
    settings = ("--set", f"engine.memory_bytes={24 * GIB}", "--port", "0")
    refused = CliRunner().invoke(app, ["serve", *words, *settings])
    assert isinstance(refused.exception, MemoryPlanImpossible)
    assert refused.exception.message == found["why_not"]
    assert not list(tmp_path.iterdir())  # nothing was fetched


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (80, ("--base", "llama-2-70b")),
        (80, ("--base", "mixtral-8x7b-instruct", "--quantize", "int8", "--set", f"engine.kv_bytes={60 * GIB}")),
        (8, ("--base", "llama-2-7b", "--tensor-parallel", "2")),
        (24, ("--base", "llama-2-7b", "--set", f"engine.kv_bytes={20 * GIB}")),
        (24, ("--base", "llama-2-7b", "--set", f"adapters.bank_bytes={12 * GIB}")),
    ],
)
def test_serve_refuses_what_does_not_fit_in_the_words_of_the_plan(
    memory: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    all_words = (*words, "--set", f"engine.memory_bytes={memory * GIB}")
    found = fields(*all_words)
    assert (found["fits"], found["exit_code"]) == (False, 1)
    refused = CliRunner().invoke(app, ["serve", *all_words, "--port", "0"])
    assert isinstance(refused.exception, MemoryPlanImpossible)
    assert refused.exception.message == f"{words[1]}: {found['why_not']}. `manylora plan` shows what fits"
    assert not list(tmp_path.iterdir())  # nothing was fetched


def test_each_base_of_the_settings_has_its_own_settings(tmp_path: Path) -> None:
    lines = 'max_model_len_of = ["zephyr-7b-beta=512", "LLAMA-2-7B=1024"]\nquantize_of = ["zephyr-7b-beta=int8"]'
    words = ("--config", bases_file(tmp_path, "zephyr-7b-beta", lines=lines), "--device-memory", "40GiB")
    found = fields(*words)["bases"]
    assert [each["plan"]["max_model_len"] for each in found] == [1024, 512]
    assert [each["weights"] for each in found] == ["bfloat16", "int8"]
    assert [each["plan"]["max_model_len"] for each in fields(*words, "--context", "256")["bases"]] == [256, 256]
    file = bases_file(tmp_path, "zephyr-7b-beta")
    alone = fields("--config", file, "--device-memory", "40GiB", "--base", "llama-2-13b")
    assert alone["base"] == "Llama-2-13b"  # `--base` takes the place of all


def test_each_rank_has_an_equal_part_of_the_memory(tmp_path: Path) -> None:
    lines = 'tensor_parallel_of = ["zephyr-7b-beta=2"]'
    words = ("--config", bases_file(tmp_path, "zephyr-7b-beta", lines=lines))
    found = fields(*words, "--set", f"engine.memory_bytes={40 * GIB}")
    one, two = found["bases"]
    assert (one["plan"]["ranks"], two["plan"]["ranks"]) == (1, 2)
    memory = one["plan"]["available_bytes"] + 2 * two["plan"]["available_bytes"]
    assert memory in range(40 * GIB - 4, 40 * GIB + 1)
    assert 2 * two["plan"]["process_bytes"] == PROCESS_BYTES + ENGINE_BYTES
    with pytest.raises(ConfigInvalid, match=r"--device-memory needs one number of ranks for all bases"):
        raise_of(*words, "--device-memory", "24GiB")


def test_more_ranks_than_the_memory_holds_are_refused_by_name(tmp_path: Path) -> None:
    words = ("--base", "llama-2-7b", "--tensor-parallel", "32", "--set", f"engine.memory_bytes={20 * GIB}")
    found = fields(*words)
    assert (found["fits"], found["exit_code"]) == (False, 1)
    assert "available    640.0 MiB for each of 32 ranks" in found["stderr"]
    assert f"{found['why_not']}; " in found["stderr"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--base", "Llama-2-7B"), "the base Llama-2-7B is given twice"),
        (("--base", "no/such"), "base model no/such is not in"),
        (("--base", "zephyr-7b-beta", "--streams", "2"), "--streams plans a single base"),
        (("--base", "zephyr-7b-beta", "--context", "5000"), "--context must be 2 to 4096, the window of Llama-2-7b"),
        (
            ("--base", "zephyr-7b-beta", "--tensor-parallel", "3"),
            "llama-2-7b: tensor-parallel degree 3 does not divide",
        ),
        (("--base", "zephyr-7b-beta", "--set", "model.quantize_of=x=int8"), "model.quantize_of: x is no base of this"),
    ],
)
def test_several_bases_that_make_no_plan_are_refused_by_name(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ManyloraError, match=said):
        raise_of("--base", "llama-2-7b", *words)


def test_a_kv_cache_that_is_set_counts_for_the_streams() -> None:
    words = ("--base", "llama-2-7b", "--device-memory", "24GiB", "--set", "engine.kv_bytes=4294967296", "--streams")
    assert fields(*words, "2")["fits"]
    assert "engine.kv_bytes = 4294967296 holds 2 streams of 4096 positions" in fields(*words, "3")["stderr"]


def test_a_base_that_does_not_fit_names_the_remedies() -> None:
    found = fields("--base", "llama-2-70b", "--device-memory", "80GB")
    assert (found["fits"], found["exit_code"], found["degree_needed"]) == (False, 1, 2)
    assert found["quantize_that_fits"] == ["int8", "int4"]
    assert found["stderr"].startswith("manylora: Llama-2-70b: the memory plan does not fit: weights 131562.5 MiB")
    assert "it fits with --quantize int8; it fits with --quantize int4; it needs 2 such devices" in found["stderr"]


@pytest.mark.parametrize(
    ("quantize", "least"), [("none", 2 * 46_702_792_704), ("int8", 46_702_792_704), ("int4", 29_000_000_000)]
)
def test_quantised_weights_and_their_scales_count(quantize: str, least: int) -> None:
    found = fields("--base", "mixtral-8x7b-instruct", "--device-memory", "100GiB", "--quantize", quantize)
    assert least <= found["plan"]["weight_bytes"] <= 1.02 * least
    assert found["fits"]


def test_a_device_of_several_has_its_share() -> None:
    words = ("--base", "llama-2-70b", "--device-memory", "80GB", "--tensor-parallel")
    one, eight = fields(*words, "1"), fields(*words, "8")
    assert eight["fits"]
    assert eight["kv_bytes_per_token"] * 8 == one["kv_bytes_per_token"]
    assert {room["degree"]: room["weight_bytes"] for room in one["degrees"]}[8] == eight["plan"]["weight_bytes"]
    assert 8 * eight["plan"]["weight_bytes"] < 1.001 * one["plan"]["weight_bytes"]


def test_a_base_in_the_cache_is_planned_by_its_config(tmp_path: Path) -> None:
    known = describe("code-llama-70b-instruct", tmp_path).known
    assert known is not None
    folder = tmp_path / "bases" / known.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**known.config, "max_position_embeddings": 16384}))
    words = ("--base", "code-llama-70b-instruct", "--device-memory", "200GiB", "--context", "16384")
    assert fields(*words)["shape_from"] == str(folder / "config.json")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigInvalid, match="--context must be 2 to 4096, the window of Code-llama-70b-instruct"):
        raise_of(*words)


def raise_of(*words: str) -> None:
    """Raise the error that `main` prints as one line before it exits with 1."""
    result = plan(*words)
    assert result.stdout == ""
    assert isinstance(result.exception, ManyloraError), result.output
    raise result.exception


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device-memory", "-1GiB"), "--device-memory must be a size of 1 MiB to 1 PiB.*'-1GiB'"),
        (("--device-memory", "0"), "--device-memory must be"),
        (("--device-memory", "9999999TiB"), "--device-memory must be"),
        (("--device-memory", "1e9GiB"), "--device-memory must be"),
        (("--device-memory", "nan"), "--device-memory must be"),
        (("--device-memory", "24XB"), "--device-memory must be"),
        (("--set", "engine.memory_bytes=-1"), "engine.memory_bytes must be at least 0"),
        (("--set", f"engine.memory_bytes={1 << 60}"), "engine.memory_bytes must be at most"),
        (("--set", f"engine.kv_bytes={1 << 60}"), "engine.kv_bytes must be at most"),
        (("--context", "-5"), "--context must be 2 to 4096, the window of Llama-2-7b"),
        (("--context", "1"), "--context must be"),
        (("--context", "5000"), "--context must be 2 to 4096"),
        (("--streams", "0"), "--streams must be 1 to 1000000. Given: 0"),
        (("--streams", "-3"), "--streams must be"),
        (("--streams", "10000000000"), "--streams must be"),
        (("--quantize", "int3"), "model.quantize must be one of none, int8, int4. Given: int3"),
        (("--tensor-parallel", "3"), "degree 3 does not divide the 32 attention heads.*1, 2, 4, 8, 16, 32"),
        (("--tensor-parallel", "0"), "model.tensor_parallel must be at least 1"),
        (("--tensor-parallel", "2000"), "model.tensor_parallel must be at most 1024"),
    ],
)
def test_bad_input_is_refused_by_name(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ManyloraError, match=said):
        raise_of("--base", "llama-2-7b", *words)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("lama-2-7b", "no base model 'lama-2-7b': did you mean Llama-2-7b"),
        ("no/such", "base model no/such is not in .*run: manylora pull no/such"),
    ],
)
def test_an_unknown_base_is_refused_by_name(base: str, said: str) -> None:
    with pytest.raises(ManyloraError, match=said):
        raise_of("--base", base)


@pytest.mark.parametrize("words", [("serve", "--port", "0"), ("generate", "hello")])
def test_a_base_that_no_memory_here_holds_is_refused_before_it_is_fetched(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [words[0], *words[1:], "--base", "mixtral-8x7b-instruct"], env=_ONE_GIB)
    assert isinstance(result.exception, MemoryPlanImpossible)
    assert "mixtral-8x7b-instruct: the memory plan does not fit: weights  89078.5 MiB" in result.exception.message
    assert list(tmp_path.iterdir()) == []


def test_the_python_interface_refuses_alike(tmp_path: Path) -> None:
    with pytest.raises(MemoryPlanImpossible, match="Llama-2-70b: the memory plan does not fit"):
        LLM("Llama-2-70b", settings={"engine.memory_bytes": GIB})
    assert list(tmp_path.iterdir()) == []


def test_memory_beyond_the_machine_is_refused_where_the_plan_takes_it() -> None:
    flags: dict[str, Setting] = {"model.base": "Llama-2-7b", "engine.memory_bytes": 1 << 50, "engine.kv_bytes": 1 << 49}
    with pytest.raises(MemoryPlanImpossible, match=r"takes 512.* TiB, and this machine has .*engine\.kv_bytes"):
        refuse_impossible_plan(load_config(flags=flags))


def test_a_base_of_unknown_shape_is_left_to_the_fetch() -> None:
    refuse_impossible_plan(load_config(flags={"model.base": "no/such"}, environ={}))
