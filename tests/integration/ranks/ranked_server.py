"""A server whose base several ranks share, the processes of its ranks, and the replies of the base in one process."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from peft import LoraConfig

from manylora import LLM
from manylora.config.declaration import Setting
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import READS, make_cache, running_server
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import has_word, is_alive, listens, wait_for

NEW_TOKENS = 8
PROMPTS = ("hello world", "the dog")
NAMES = (None, "a-one", "a-two")
RANK = "rank_main"
"""A word in the command of each rank's process but the first, which is the engine's."""


def make_folder(folder: Path) -> Path:
    """Make a base that two and four ranks can share, with fewer key-value heads than four, and two adapters of it."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    base = make_base(folder / "tiny", vocab_size=340, max_position_embeddings=4096, **sizes)
    save_byte_level(base.directory)
    for seed, name in enumerate(NAMES[1:], 1):
        config = LoraConfig(r=2 * seed, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM")
        make_adapter(base, folder / "adapters" / str(name), config, seed=seed)
    return folder


def alone(folder: Path) -> dict[tuple[str | None, str], str]:
    """Return the reply of one process by (adapter, prompt)."""
    settings: dict[str, Setting] = {"model.kernels": "reference", "engine.kv_bytes": 1 << 22}
    with LLM(folder / "tiny", adapters=folder / "adapters", settings=settings) as llm:
        return {
            (name, prompt): llm.generate(prompt, name, max_tokens=NEW_TOKENS).text
            for name in NAMES
            for prompt in PROMPTS
        }


@dataclass
class RankedServer:
    """A client of the server."""

    url: str
    client: httpx2.Client

    def complete(self, name: str | None, prompt: str, **more: object) -> httpx2.Response:
        body = {"model": name or "tiny", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        return self.client.post("/v1/completions", json={**body, **more})

    def text(self, name: str | None, prompt: str) -> str:
        reply = self.complete(name, prompt)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["text"])

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def edge(self) -> psutil.Process:
        """Return the process of the server, the parent of the engine."""
        port = httpx2.URL(self.url).port
        return next(each for each in psutil.Process().children(recursive=True) if listens(each, port))

    def engine(self) -> psutil.Process:
        """Return the process of the engine, the first rank."""
        [found] = [each for each in self.edge().children() if has_word(each, "engine_main")]
        return found

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the other ranks."""
        return [each for each in self.engine().children(recursive=True) if has_word(each, RANK)]

    def has_ranks(self, count: int, but: set[int]) -> bool:
        """Return whether so many ranks live, the engine counted, and none of them is among the processes `but`."""
        with contextlib.suppress(psutil.Error, ValueError):
            pids = {self.engine().pid, *(each.pid for each in self.ranks())}
            return len(pids) == count and not pids & but
        return False

    def number(self, metric: str) -> float:
        """Return the value of a metric without labels."""
        lines = self.client.get("/metrics").text.splitlines()
        [value] = [line.split()[1] for line in lines if line.startswith(f"{metric} ")]
        return float(value)

    def completion_tokens(self, adapter: str) -> int:
        """Return the completion tokens of an adapter in the ledger."""
        rows = self.get("/v1/account/usage?by=adapter")["usage"]
        return sum(row["completion_tokens"] for row in rows if row["names"][0] == adapter)


@contextlib.contextmanager
def ranked_server(folder: Path, log: Path, degree: int, *settings: str, exit_code: int = 0) -> Iterator[RankedServer]:
    """Start a server of `degree` ranks on the base of `make_folder`. Its end leaves no process of theirs."""
    cache = make_cache(log.parent / f"cache-{log.name}")
    words = [f"--base={folder / 'tiny'}", f"--adapter-root={folder / 'adapters'}", f"--tensor-parallel={degree}"]
    given = [f"model.cache_dir={cache}", "model.kernels=reference", "metering.ship_s=0.05", READS, *settings]
    log.parent.mkdir(parents=True, exist_ok=True)
    words += [f"--set={each}" for each in given]
    with (
        running_server(log, *words, starts_engines=True, exit_code=exit_code) as url,
        httpx2.Client(base_url=url, timeout=120) as client,
    ):
        server = RankedServer(url, client)
        yield server
        processes = [] if exit_code else [server.engine(), *server.ranks()]
        assert len(processes) == (0 if exit_code else degree)
    wait_for(lambda: not any(map(is_alive, processes)))


def events_of(stream: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Yield the JSON of a stream's events."""
    for line in stream.iter_lines():
        if line.startswith("data:") and not line.endswith("[DONE]"):
            yield json.loads(line.removeprefix("data:"))
