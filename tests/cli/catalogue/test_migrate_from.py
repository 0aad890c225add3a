"""Command lines of other servers in our words: each option is set, told or named."""

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manylora.cli import app
from manylora.cli.catalogue.foreign_flags import LORAX, VLLM, LauncherOption, Takes
from manylora.cli.catalogue.foreign_lines import AdapterMove, read_line
from manylora.config.settings import Config, leaves, load_config, parse_setting
from tests.cli.remote.verbs import command_of
from tests.cli.test_documented_commands import parse

VLLM_LINE = (
    "vllm serve meta-llama/Llama-3.1-8B --enable-lora --lora-modules sql=/data/sql "
    '\'{"name": "a b", "path": "org/x"}\' --max-lora-rank 64 --max_model_len 8k --port=9000'
)


ORIGINS = '["https://a.example", "https://b.example"]'


def run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["migrate-from", *words])
    return found.exit_code, found.output


def as_json(*words: str) -> dict[str, Any]:
    code, text = run(*words)
    assert code == 0, text
    return dict(json.loads(text))


@pytest.mark.parametrize("flags", [LORAX, VLLM])
def test_each_option_is_set_here_or_its_difference_is_told(flags: dict[str, LauncherOption]) -> None:
    settings = leaves(Config())
    options = {"--base", "--host", "--port", "--quantize", "--tensor-parallel", "--max-model-len", "--device", "--auth"}
    for name, flag in flags.items():
        ours = flag.ours.partition("=")[0]
        assert flag.differs or ours, name
        assert not ours or ours in options or ours in settings or ours == "uploads", name
        assert flag.takes is not Takes.NONE or "=" in flag.ours or not flag.ours, name


@pytest.mark.parametrize(("launcher", "flags", "base"), [("lorax", LORAX, "--model-id"), ("vllm", VLLM, "--model")])
def test_the_command_line_takes_each_command_that_is_printed(
    launcher: str, flags: dict[str, LauncherOption], base: str
) -> None:
    values: dict[str, tuple[str, ...]] = {
        "--lora-modules": ("sql=/data/sql",),
        "--device": ("cpu",),
        "--preloaded-adapter-ids": ("org/a",),
    }
    values |= {"--prefix-caching": ("true", "false"), "--root-path": ("/models",)}
    values |= dict.fromkeys(("--cors-allow-origin", "--allowed-origins"), ("https://a.example", "*", '["*"]', ORIGINS))
    values |= dict.fromkeys(("--quantize", "--quantization", "-q"), ("awq", "bitsandbytes", "fp8"))
    values |= dict.fromkeys(("--adapter-source", "--default-adapter-source"), ("hub", "local", "s3", "pbase"))
    values |= dict.fromkeys(("--max-num-batched-tokens", "--max-batch-prefill-tokens"), ("4096",))
    for name, flag in flags.items():
        for given in [()] if flag.takes is Takes.NONE else [(value,) for value in values.get(name, ("8",))]:
            for command in as_json(launcher, "--json", "--", base, "org/m", name, *given)["commands"]:
                if not command.startswith("#"):
                    words = shlex.split(command)[1:]
                    parse(command_of(app), "manylora", words, is_whole=True)
                    pairs = [after.partition("=") for word, after in pairwise(words) if word == "--set"]
                    load_config(flags={key: parse_setting(key, text) for key, _, text in pairs}, environ={})


def test_a_line_of_vllm_becomes_a_server_and_uploads() -> None:
    found = as_json("vllm", "--json", "--", *shlex.split(VLLM_LINE))
    assert found["commands"] == [
        "manylora serve --base meta-llama/Llama-3.1-8B --max-model-len 8000 --port 9000 --host 0.0.0.0 "
        "--set adapters.max_rank=64",
        "manylora repos create sql",
        "manylora repos upload sql /data/sql --alias prod",
        "# a-b: requests name it hub://org/x; no upload is needed",
    ]
    assert found["unknown"] == []
    assert as_json("vllm", "--json", VLLM_LINE) == found, "one word in quotation marks is the same"


@pytest.mark.parametrize(
    ("line", "base", "port"),
    [
        ("MODEL_ID=org/m PORT=80 lorax-launcher", "org/m", "80"),
        ("docker run -e MODEL_ID=org/m --gpus all -p 8080:80 ghcr.io/predibase/lorax:main", "org/m", "3000"),
        ("docker run -p 8080:80 ghcr.io/predibase/lorax:main --model-id org/m -p 80", "org/m", "80"),
        ("/usr/bin/lorax-launcher --model-id=org/m", "org/m", "3000"),
        ("--model-id org/m", "org/m", "3000"),
    ],
)
def test_words_before_the_launcher_are_left_out(line: str, base: str, port: str) -> None:
    moved = read_line("lorax", shlex.split(line))
    assert (moved.options["--base"], moved.options["--port"], moved.unknown) == (base, port, [])


def test_a_module_and_an_image_of_vllm_are_launchers_too() -> None:
    for begin in ("python -m vllm.entrypoints.openai.api_server", "docker run --gpus all vllm/vllm-openai:latest"):
        moved = read_line("vllm", shlex.split(f"{begin} --model org/m --lora-modules a=/x b=/y --seed 1"))
        assert (moved.options["--base"], moved.unknown) == ("org/m", [])
        assert moved.uploads == [AdapterMove("a", "/x"), AdapterMove("b", "/y")]


def test_unknown_words_are_named_and_keys_are_not_printed() -> None:
    code, text = run("vllm", "--", "vllm", "serve", "org/m", "more", "--frobnicate", "3", "--api-key", "sekret")
    assert code == 0
    assert "#   more\n#   --frobnicate 3\n" in text
    assert "sekret" not in text
    assert "--auth on" in text


@pytest.mark.parametrize(
    ("form", "ours", "told"),
    [
        ("bitsandbytes", "int8", "int8 is the nearest"),
        ("bitsandbytes-nf4", "int4", "int4 is the nearest"),
        ("awq", None, "read as they are"),
        ("gptq", None, "read as they are"),
        ("hqq-4bit", None, "are not read"),
    ],
)
def test_a_quantised_base_has_the_nearest_form_or_the_reason(form: str, ours: str | None, told: str) -> None:
    moved = read_line("lorax", ["--model-id", "org/m", "--quantize", form])
    assert moved.options.get("--quantize") == ours
    assert [told in text for option, text in moved.differs if option == f"--quantize {form}"] == [True]


def test_a_folder_of_adapters_becomes_uploads(tmp_path: Path) -> None:
    for name in ("b", "a c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    commands = as_json("lorax", "--json", "--folder", str(tmp_path))["commands"]
    assert commands == [
        "manylora repos create a-c",
        f"manylora repos upload a-c {shlex.quote(str(tmp_path / 'a c'))} --alias prod",
        "manylora repos create b",
        f"manylora repos upload b {tmp_path / 'b'} --alias prod",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tgi", "x"], "lorax, vllm"),
        (["vllm"], "--folder"),
        (["vllm", "vllm serve 'x"], "cannot be read"),
        (["vllm", "vllm serve m --lora-modules a"], "NAME=PATH"),
        (["vllm", "vllm serve m --lora-modules a=/x a=/y"], "'a'"),
        (["lorax", "lorax-launcher --port"], "--port"),
        (["lorax", "--folder", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_by_name(words: list[str], said: str) -> None:
    found = CliRunner().invoke(app, ["migrate-from", *words])
    assert found.exit_code == 1
    assert said in (found.output + str(found.exception))
