"""Prompts of Mistral's published vocabulary against mistral-common, which encodes with SentencePiece itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from manylora.models.text.tokenizer import Tokenizer
from tests.models.text.mistral_vocabulary import RECORDED, save_mistral

Json = dict[str, Any]


@pytest.fixture(scope="module")
def recorded() -> Json:
    found: Json = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["normalizer", "metaspace"])
def folder(request: pytest.FixtureRequest, recorded: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    merges = [(left, right) for left, right in recorded["merges"]]
    directory = tmp_path_factory.mktemp("mistral")
    return save_mistral(directory, recorded["pieces"], merges, is_metaspace=request.param)


def test_a_prompt_has_the_ids_of_mistral_common(recorded: Json, folder: Path) -> None:
    ours = Tokenizer(folder)
    assert len(recorded["conversations"]) > 30
    for each in recorded["conversations"]:
        prompt = ours.apply_chat_template(each["messages"])
        assert ours.encode(prompt, add_special_tokens=False) == each["ids"], each["messages"]


def test_prompts_and_their_texts_are_those_of_transformers(recorded: Json, folder: Path) -> None:
    ours, oracle = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for each in recorded["conversations"]:
        prompt = ours.apply_chat_template(each["messages"])
        ids = oracle.apply_chat_template(each["messages"])["input_ids"]
        assert ours.encode(prompt, add_special_tokens=False) == ids
        assert ours.decode(ids, skip_special_tokens=False) == oracle.decode(ids)
        for content in {turn["content"] for turn in each["messages"]}:
            ids, stream = ours.encode(content), ours.stream()
            assert ids == oracle(content)["input_ids"]
            text = "".join([*map(stream.push, ids), stream.finish()])
            assert text == oracle.decode(ids, skip_special_tokens=True)
