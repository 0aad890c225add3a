"""A base without a chat template, in a program and on the command line: text works, and chat says what to use."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manylora import LLM
from manylora.cli import app
from manylora.errors import ConfigInvalid, TemplateFailed
from tests.support.text_adapters import make_text_base

ASKED = [{"role": "user", "content": "hello world"}]
ADVICE = "give the prompt as one text, as `LLM.generate` and `manylora generate --raw` do"
SAID = f"model `Plain` has no chat template; {ADVICE}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_text_base(tmp_path_factory.mktemp("plain") / "Plain").directory
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["chat_template"]
    file.write_text(json.dumps(settings))
    return directory


def test_chat_in_a_program_is_refused_with_what_to_use_instead(plain: Path) -> None:
    with LLM(plain, settings={"model.kernels": "reference"}) as llm:
        for chat in (lambda: llm.chat(ASKED), lambda: list(llm.stream(ASKED))):
            with pytest.raises(TemplateFailed) as caught:
                chat()
            assert caught.value.message == SAID
        assert llm.generate("hello", max_tokens=2).tokens


def test_the_operators_template_makes_it_chat(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ bos_token }}{{ messages[0].content }}")
    with LLM(plain, settings={"model.kernels": "reference", "model.chat_template": str(file)}) as llm:
        whole = llm.generate("<|start|>hello world", max_tokens=3)
        chat = llm.chat(ASKED, max_tokens=3)
        assert (chat.prompt_tokens, chat.token_ids) == (whole.prompt_tokens, whole.token_ids)
    for content, said in ((None, "cannot read"), (b"\xff", "cannot read"), (b" \n", "is empty")):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigInvalid, match=f"model.chat_template: .*{said}|model.chat_template: {said}"):
            LLM(plain, settings={"model.kernels": "reference", "model.chat_template": str(file)})


@pytest.mark.long
def test_the_command_line_names_its_option(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_MODEL_KERNELS", "reference")
    monkeypatch.setenv("MANYLORA_MODEL_CACHE_DIR", str(tmp_path))
    words = ["generate", "hello", "--base", str(plain), "--max-new-tokens", "2"]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, TemplateFailed)
    assert refused.exception.message == SAID
    assert CliRunner().invoke(app, [*words, "--raw"]).exit_code == 0
