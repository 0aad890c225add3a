"""An adapter saved with a copy of its base's text files adds nothing to them, in whichever files the base has them."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from manylora.adapters.refusals import Refusals
from manylora.adapters.text.base_text import MAX_FILE_BYTES, BaseText
from manylora.adapters.text.text_files import read_adapter_text
from manylora.models.text.adapter_text import NOTHING_SAID, AdapterText
from manylora.models.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizers import save_sentencepiece

TEMPLATE = "{{ bos_token }}{{ messages[0].content }}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return save_sentencepiece(tmp_path / "base")


def settings(base: Path, **changes: object) -> None:
    named = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>"}
    (base / "tokenizer_config.json").write_text(json.dumps({**named, **changes}))


def read(base: Path, folder: Path) -> AdapterText:
    """The text of an adapter with the folder's files, as far as an adapter may have them."""
    files = {name: (folder / name).read_bytes() for name in MAX_FILE_BYTES if (folder / name).exists()}
    return read_adapter_text(files, BaseText.read(base), Refusals("a", "local", "the-base"))


def copies(base: Path) -> list[Path]:
    """The base's own files, and the same files as transformers writes them."""
    copied, saved = base.parent / "copied", base.parent / "saved"
    shutil.copytree(base, copied)
    AutoTokenizer.from_pretrained(base).save_pretrained(saved)
    return [copied, saved]


def test_templates_beside_the_default_belong_to_the_base(base: Path) -> None:
    settings(base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert BaseText.read(base).templates == {"default": TEMPLATE, "tool_use": "tools"}
    for copy in copies(base):
        assert read(base, copy) == NOTHING_SAID
        (copy / "chat_template.jinja").write_text("another")
        assert read(base, copy).templates == {"default": "another"}


def test_templates_in_a_list_belong_to_the_base(base: Path) -> None:
    settings(base, chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "rag"}])
    for copy in copies(base):
        assert read(base, copy) == NOTHING_SAID


def test_tokens_and_flags_of_the_settings_belong_to_the_base(base: Path) -> None:
    size = Tokenizer(base).vocab_size
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    settings(base, added_tokens_decoder={str(size): {"content": "<step>", **flags}})
    found = BaseText.read(base)
    assert (found.pieces["<step>"], found.next_id) == (size, size + 1)
    for copy in copies(base):
        assert read(base, copy) == NOTHING_SAID


def test_special_tokens_of_older_files_belong_to_the_base(base: Path) -> None:
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    (base / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    assert BaseText.read(base).end_ids == Tokenizer(base).eos_ids == (2,)
    for copy in copies(base):
        assert read(base, copy) == NOTHING_SAID
