"""A real server with two arms and a shadow: replies, metrics, results and usage have the same counts of each arm."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from peft import LoraConfig

from tests.integration.adapters.test_uploaded_adapters import generate, tokens, upload
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import running_server
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import wait_for

PROD = "/v2/repos/triage/aliases/prod"
NUM_TOKENS = 6
SAMPLE = re.compile(
    r'^manylora_alias_requests(?:_total)?\{adapter="[^"]*@(\d+)",result="(\w+)",role="(\w+)"\} (\S+)$', re.M
)

pytestmark = pytest.mark.long  # a server of its own


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client of a server where the versions 1 to 3 of `triage` are uploaded."""
    base = make_base(tmp_path / "Tiny-Base", vocab_size=330)
    save_byte_level(tmp_path / "Tiny-Base")
    settings = [f"control.dir={tmp_path / 'control'}", f"metering.dir={tmp_path / 'metering'}"]
    flags = ["--base", str(tmp_path / "Tiny-Base"), *(word for each in settings for word in ("--set", each))]
    with running_server(tmp_path / "log", *flags) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/v2/repos", json={"name": "triage"}).raise_for_status()
        for seed in (1, 2, 3):
            config = LoraConfig(r=4, lora_alpha=16, target_modules=ALL)
            made = make_adapter(base, tmp_path / f"made-{seed}", config, seed=seed)
            assert upload(client, made) == seed
        yield client


def counted(client: httpx2.Client) -> Counter[tuple[int, str, str]]:
    """The metric: requests by version, role and result."""
    found = SAMPLE.findall(client.get("/metrics").raise_for_status().text)
    return Counter({(int(version), role, result): int(float(value)) for version, result, role, value in found})


def leave(client: httpx2.Client) -> int:
    """Begin a stream and leave it at its first token; return the version that ran."""
    body = {"inputs": "the quick", "parameters": {"adapter_id": "triage/prod", "max_new_tokens": 200}}
    with client.stream("POST", "/generate_stream", json=body) as reply:
        next(reply.iter_lines())
        return int(reply.headers["x-adapter-id"].rpartition("/")[2])


def test_the_counts_of_both_arms_add_up(client: httpx2.Client) -> None:
    own = {version: tokens(generate(client, f"triage/{version}")) for version in (1, 2)}
    client.put(PROD, json={"weights": {"1": 60, "2": 40}, "shadow": 3}).raise_for_status()

    def ask(_: int) -> int:
        reply = generate(client, "triage/prod")
        version = int(reply.headers["x-adapter-id"].rpartition("/")[2])
        assert tokens(reply) == own[version]
        return version

    with ThreadPoolExecutor(4) as pool:
        seen = Counter(pool.map(ask, range(40)))
    left = Counter(leave(client) for _ in range(4))
    assert set(seen) == {1, 2}, "each arm has requests; one of 40 misses it with a chance of 10**-9"

    def shadows() -> int:
        return sum(count for (_, role, _), count in counted(client).items() if role == "shadow")

    wait_for(lambda: shadows() == 40)
    wait_for(lambda: sum(count for (_, role, _), count in counted(client).items() if role == "answer") == 44)
    told = counted(client)
    assert {version: told[version, "answer", "ok"] for version in (1, 2)} == seen
    assert {version: told[version, "answer", "left"] for version in (1, 2)} == {each: left[each] for each in (1, 2)}

    def results() -> dict[tuple[int, bool], dict[str, int]]:
        found = client.get(f"{PROD}/results").raise_for_status().json()["results"]
        return {(each["version"], each["is_shadow"]): each for each in found}

    ran = told[3, "shadow", "ok"]
    wait_for(lambda: sum(each["requests"] for each in results().values()) == 44 + ran)
    ledger = results()
    assert {version: ledger[version, False]["requests"] for version in (1, 2)} == seen + left
    assert {version: ledger[version, False]["failures"] for version in (1, 2)} == {1: 0, 2: 0}
    assert all(ledger[each, False]["completion_tokens"] >= NUM_TOKENS * seen[each] for each in (1, 2))
    assert (ledger[3, True]["requests"], ledger[3, True]["completion_tokens"]) == (ran, ran * NUM_TOKENS)
    assert ledger[3, True]["cost_nanousd"] == 0
    usage = client.get("/v1/account/usage?by=adapter").raise_for_status().json()
    assert sum(each["requests"] for each in usage["usage"]) == 2 + 44 + ran, "the usage has the arms' requests"


def test_a_roll_back_holds_for_every_request_after_it(client: httpx2.Client) -> None:
    own = {version: tokens(generate(client, f"triage/{version}")) for version in (1, 2)}
    client.put(PROD, json={"version": 1}).raise_for_status()

    def ask(_: int) -> int:
        reply = generate(client, "triage/prod")
        version = int(reply.headers["x-adapter-id"].rpartition("/")[2])
        assert tokens(reply) == own[version], "a request under way keeps its version"
        return version

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            client.put(PROD, json={"version": 2}).raise_for_status()
            running = [pool.submit(ask, number) for number in range(6)]
            client.post(f"{PROD}/rollback").raise_for_status()
            assert {ask(number) for number in range(2)} == {1}
            assert {each.result() for each in running} <= {1, 2}
