"""Adapters that trainers push to a base on two ranks: the next request has them, and a deletion leaves none."""

from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import LlamaConfig

from tests.integration.adapters.test_pushed_adapters import BYTES, as_one
from tests.integration.ranks.ranked_server import PROMPTS, make_folder, ranked_server
from tests.integration.ranks.test_adapters import weights_in
from tests.support.tiny import ALL, TinyBase, make_adapter
from tests.support.waiting import wait_for
from tests.system.process_memory import holds

PUSHES = "/v1/adapters/fresh/tensors"


@pytest.mark.long
def test_a_name_has_the_weights_of_its_last_push_and_a_deletion_leaves_none_on_any_rank(tmp_path: Path) -> None:
    directory = make_folder(tmp_path) / "tiny"
    base = TinyBase(directory, LlamaConfig.from_pretrained(directory))
    config = LoraConfig(r=16, lora_alpha=64, target_modules=ALL)
    folders = [make_adapter(base, tmp_path / f"made-{seed}", config, seed=seed) for seed in (7, 8)]
    needles = [weights_in(folder) for folder in folders]
    with ranked_server(tmp_path, tmp_path / "log", 2, "model.kernels=native") as server:
        pids = [server.engine().pid, *(rank.pid for rank in server.ranks())]
        texts = []
        for folder in (*folders, folders[0]):
            reply = server.client.post(PUSHES, content=as_one(folder), headers=BYTES)
            assert reply.status_code == 200, reply.text
            texts.append(server.text("fresh", PROMPTS[0]))
        assert texts[0] == texts[2] != texts[1]
        assert all(holds(pid, needles[0]) for pid in pids)
        assert server.client.delete(PUSHES).status_code == 200
        assert server.complete("fresh", PROMPTS[0]).status_code == 404
        wait_for(lambda: not any(holds(pid, needle) for pid in pids for needle in needles))
