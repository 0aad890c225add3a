"""The commands that a started server prints, for the formats of the known bases."""

import json
import re
from pathlib import Path

import pytest

from manylora.cli.examples import examples
from manylora.models.text.tokenizer import Tokenizer
from tests.models.text.chat_formats import FORMATS
from tests.models.tiny_tokenizers import save_sentencepiece


@pytest.mark.parametrize("name", [name for name, chat in FORMATS.items() if chat.bos == "<s>"])
def test_a_prompt_that_is_sent_as_text_has_the_ids_of_the_chat(name: str, tmp_path: Path) -> None:
    """The server puts the begin token before a text, so that the prompt of the lorax package has none."""
    save_sentencepiece(tmp_path)
    chat = FORMATS[name]
    settings = {"bos_token": chat.bos, "eos_token": chat.eos, "chat_template": chat.template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(tmp_path)
    commands = examples("http://127.0.0.1:1", base="Tiny", adapters=["triage"], tokenizer=tokenizer)
    (prompt,) = re.findall(r"^prompt = (.*)$", commands["lorax-client (pip install lorax-client)"], re.MULTILINE)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Where is my parcel?"}])
    sent = tokenizer.encode(json.loads(prompt))
    expected = tokenizer.encode(rendered, add_special_tokens=False)
    assert sent == (expected if rendered.startswith("<s>") else [tokenizer.token_id("<s>"), *expected])
