"""The base that is pulled, and a hub that has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.fetch.fake_hub import FakeHub, running_hub
from tests.models.test_llama import SMALL, save_random
from tests.models.tiny_tokenizers import save_byte_level


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    save_random(directory, LlamaForCausalLM(LlamaConfig(**SMALL)), max_shard_size="100KB")
    save_byte_level(directory)
    (directory / "pytorch_model.bin").write_bytes(b"never fetched")
    (directory / "modeling_own.py").write_text("raise SystemExit")
    return directory


@pytest.fixture
def hub(base: Path) -> Iterator[FakeHub]:
    with running_hub("org/model", {file.name: file.read_bytes() for file in base.iterdir()}) as hub:
        yield hub
