"""The bases of a server: the settings of each, the division of the memory, and refusals before an engine starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from manylora import LLM
from manylora.adapters.sources.source import CONFIG_FILE, WEIGHTS_FILE
from manylora.config.groups.adapters import MIB
from manylora.config.settings import Config, load_config
from manylora.errors import ConfigInvalid, MemoryPlanImpossible, StartupError
from manylora.wiring.bases import division_lines, named_bases, server_bases
from manylora.wiring.memory_plan import PROCESS_BYTES

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
PLENTY = 4096 * MIB


def write_base(folder: Path, *, hidden: int = 64, vocab: int = 300) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**SHAPE, "hidden_size": hidden, "vocab_size": vocab}))
    return folder


def two(tmp_path: Path, **settings: Any) -> Config:
    """Settings of the bases `small` and `large`, written here unless they exist."""
    for name, hidden in (("small", 64), ("large", 1024)):
        if not (tmp_path / name).is_dir():
            write_base(tmp_path / name, hidden=hidden)
    return config(tmp_path / "small", tmp_path / "large", **settings)


def config(base: Path | str, *more: Path | str, **settings: Any) -> Config:
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    return load_config(flags={"model.base": str(base), "model.more_bases": tuple(map(str, more)), **flags}, environ={})


def test_a_single_base_keeps_its_settings_and_plans_for_itself(tmp_path: Path) -> None:
    given = config(write_base(tmp_path / "small"))
    [base] = server_bases(given)
    assert base.name == "small"
    assert base.config == given
    assert division_lines([base]) == []


def test_each_base_has_settings_of_its_own(tmp_path: Path) -> None:
    given = two(
        tmp_path,
        model__quantize="int8",
        model__quantize_of=("LARGE=int4",),
        model__max_model_len_of=(f"{tmp_path}/small=100",),
        engine__max_model_len=400,
        adapters__disk_bytes=1000,
    )
    small, large = server_bases(given, PLENTY)
    assert [base.config.model.quantize for base in (small, large)] == ["int8", "int4"]
    assert [base.config.engine.max_model_len for base in (small, large)] == [100, 400]
    assert [base.config.model.more_bases for base in (small, large)] == [(), ()]
    assert {base.config.adapters.disk_bytes for base in (small, large)} == {500}


def test_the_memory_beside_weights_and_processes_is_divided_by_the_shares(tmp_path: Path) -> None:
    equal = [base.config.engine.memory_bytes for base in server_bases(two(tmp_path), PLENTY)]
    assert sum(equal) in range(PLENTY - 2, PLENTY + 1)
    assert min(equal) > PROCESS_BYTES
    given = two(tmp_path, model__memory_share_of=("large=3",))
    shared = [base.config.engine.memory_bytes for base in server_bases(given, PLENTY)]
    assert sum(shared) in range(PLENTY - 2, PLENTY + 1)
    quarter = equal[0] - shared[0]  # of what the parts of each base leave: a half becomes a quarter
    assert shared[1] - equal[1] in range(quarter - 2, quarter + 3)
    assert PROCESS_BYTES < equal[0] - 2 * quarter < PROCESS_BYTES + 8 * MIB  # the weights and steps of the small base
    lines = division_lines(server_bases(given, PLENTY))
    assert lines[0].startswith("memory of 2 bases 409")
    assert [line.split()[0] for line in lines[1:]] == ["small", "large"]


def refusal(given: Config, available_bytes: int = PLENTY) -> str:
    with pytest.raises(StartupError) as caught:
        server_bases(given, available_bytes)
    return caught.value.message


def test_one_base_twice_is_refused(tmp_path: Path) -> None:
    small = write_base(tmp_path / "small")
    with pytest.raises(ConfigInvalid, match="small is given twice"):
        config(small, small)
    with pytest.raises(ConfigInvalid, match="is given twice"):
        config("Zephyr-7b-beta", "zephyr-7B-beta")
    (tmp_path / "link").symlink_to(small)
    assert "is given twice" in refusal(config(small, tmp_path / "link"))


def test_two_bases_of_one_name_are_refused(tmp_path: Path) -> None:
    one, other = write_base(tmp_path / "a" / "small"), write_base(tmp_path / "b" / "SMALL", hidden=32)
    message = refusal(config(one, other))
    assert message.startswith(f"two bases have the name small: {one} and {other}; ")


@pytest.mark.parametrize("name", ["memory_share_of", "quantize_of", "max_model_len_of", "tensor_parallel_of"])
def test_a_setting_of_a_base_that_is_not_served_is_refused(tmp_path: Path, name: str) -> None:
    value = "int8" if name == "quantize_of" else "8"
    assert f"model.{name}: huge is no base of this server" in refusal(
        two(tmp_path, **{f"model__{name}": (f"huge={value}",)})
    )
    pairs = (f"small={value}", f"SMALL={value}")
    assert f"model.{name}: SMALL has two values" in refusal(two(tmp_path, **{f"model__{name}": pairs}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_share_of", "a=0"),
        ("quantize_of", "a=int3"),
        ("max_model_len_of", "a=1"),
        ("tensor_parallel_of", "a=0"),
        ("tensor_parallel_of", "a=1025"),
    ],
)
def test_a_pair_with_an_impossible_value_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"model.{name}"):
        load_config(flags={f"model.{name}": (value,)}, environ={})


def test_memory_that_cannot_hold_all_bases_is_refused_by_name(tmp_path: Path) -> None:
    given = two(tmp_path)
    message = refusal(given, 2 * PROCESS_BYTES)
    assert message.startswith("the memory cannot hold 2 bases: ")
    assert "small " in message
    assert "large " in message
    assert f"available {2 * PROCESS_BYTES / MIB:.1f} MiB" in message
    with pytest.raises(MemoryPlanImpossible, match="the base large does not fit into its part of the memory"):
        server_bases(two(tmp_path, engine__kv_bytes=1500 * MIB, model__memory_share_of=("small=9",)), PLENTY)


def test_each_engine_preloads_the_adapters_of_its_base_alone(tmp_path: Path) -> None:
    for name, declared in (("s", "org/small"), ("l", "org/LARGE"), ("free", "")):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / CONFIG_FILE).write_text(json.dumps({"base_model_name_or_path": declared}))
        (folder / WEIGHTS_FILE).write_bytes(b"")
    names = ("s", "l", "free", "large/free", "s3://bucket/x")
    given = two(
        tmp_path, adapters__roots=(str(tmp_path / "adapters"),), adapters__preload=names, adapters__pinned=("l",)
    )
    small, large = (base.config.adapters for base in server_bases(given, PLENTY))
    assert small.preload == ("s", "free", "s3://bucket/x")
    assert large.preload == ("l", "free")
    assert (small.pinned, large.pinned) == ((), ("l",))


def test_the_library_refuses_several_bases(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"model\.more_bases: only a server has several bases"):
        LLM.from_config(two(tmp_path))


def test_a_degree_that_does_not_divide_a_base_is_refused_by_its_name(tmp_path: Path) -> None:
    message = refusal(two(tmp_path, model__tensor_parallel_of=("large=3",)))
    assert message.startswith(f"{tmp_path}/large: tensor-parallel degree 3 does not divide the 4 attention heads")
    assert "degrees of this base: 1, 2" in message


def test_a_wait_for_ranks_that_the_edge_cuts_short_is_refused_by_name(tmp_path: Path) -> None:
    several: dict[str, Any] = {"model__tensor_parallel_of": ("large=2",), "server__health_stall_s": 12.0}
    message = refusal(two(tmp_path, **several, model__rank_timeout_s=10.5))
    assert message.startswith("model.rank_timeout_s must be at least 2 s below server.health_stall_s (12)")
    assert message.endswith(f"{tmp_path}/large. Given: 10.5")
    named_bases(two(tmp_path, **several, model__rank_timeout_s=10.0))
    named_bases(two(tmp_path, server__health_stall_s=12.0, model__rank_timeout_s=60.0))


def test_nccl_is_refused_without_a_cuda_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manylora.wiring.planning.has_cuda_device", lambda: False)
    given = two(tmp_path, model__tensor_parallel=2, model__collectives="nccl")
    assert "model.collectives nccl joins CUDA devices, and this machine has none" in refusal(given)
