"""The script that wrote `tests/upgrades/0.1`. It ran once, at version 0.1, and stays to show how the data came to be.

It started that version's own `manylora control` and `manylora serve` seven times, under a wall clock that was set to
moments of 2025, and did over HTTP what operators and tenants do; the last server and its engine were killed with usage
unshipped and a stream under way. `told.json` holds that version's own answers, and what it booked itself when it was
started again on a copy: a later version has to tell and book the same. The script need not run on later versions, and
its data must never be written anew: they are what is out there.

    python -m tests.upgrades.write_0_1 FOLDER     # an empty folder beside the two TOML files of tests/upgrades/0.1
"""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM

from manylora.bench.servers import fresh_cache
from manylora.clock import SystemClock
from manylora.config.environment import environment
from manylora.models.checkpoint_files import fingerprint
from manylora.models.spec import read_spec
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import wait_for
from tests.upgrades.data_directory import names_of_packed

HERE = Path(__file__).parent / "0.1"
BASE = "Tiny-Base"
PARTS = ("adapter_config.json", "adapter_model.safetensors")
FORMS = {"text": "txt", "json": "json", "csv": "csv", "html": "html"}
PROMPT = "the quick brown fox"
NANO = 1_000_000_000
SHIFTED = """
import sys
from manylora import clock
shift_s = float(sys.argv.pop(1))
clock.SystemClock.wall_s = lambda self: clock.time.time() + shift_s
from manylora.cli import main
main()
"""


class Site:
    """The data directory that is being written, and the keys that were made, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: dict[str, str] = {}
        self.settings = folder / ".settings.toml"
        text = (HERE / "settings.toml").read_text(encoding="utf-8")
        self.settings.write_text(text.replace("@DIR@", str(folder)), encoding="utf-8")

    @contextmanager
    def running(
        self, verb: str, moment: str, said: str, *assignments: str, is_killed: bool = False
    ) -> Iterator["Client"]:
        """Run a verb whose wall clock begins at a moment, UTC, until the block ends."""
        shift_s = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() - SystemClock().wall_s()
        words = [word for each in assignments for word in ("--set", each)]
        command = [sys.executable, "-c", SHIFTED, str(shift_s), verb, "--port", "0", "--config", str(self.settings)]
        log = self.folder / f".log-{moment.replace(':', '')}"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [*command, *words], stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            ) as process,
        ):
            try:
                wait_for(lambda: process.poll() is not None or re.search(said, log.read_text()) is not None, 120)
                found = re.search(said, log.read_text())
                assert found is not None, log.read_text()
                with httpx2.Client(base_url=found[1], timeout=60) as http:
                    yield Client(self, http, process.pid, log)
            finally:
                os.killpg(process.pid, signal.SIGKILL if is_killed else signal.SIGTERM)
                process.wait(60)

    def serving(self, moment: str, *assignments: str, is_killed: bool = False) -> Any:  # what `running` gives
        return self.running("serve", moment, r"is served at\s+(http://\S+)", *assignments, is_killed=is_killed)


class Client:
    """A running server, called with the keys of the site by their names."""

    def __init__(self, site: Site, http: httpx2.Client, pid: int, log: Path) -> None:
        self.site, self.http, self.pid, self.log = site, http, pid, log

    def call(self, method: str, path: str, body: object = None, *, key: str = "admin", accept: str = "*/*") -> Any:
        headers = {"authorization": f"Bearer {self.site.keys[key]}", "accept": accept}
        reply = self.http.request(method, path, json=body, headers=headers)
        assert reply.is_success, (path, reply.status_code, reply.text)
        return reply.json() if reply.content and "json" in reply.headers["content-type"] else reply

    def keep(self, name: str, made: dict[str, Any]) -> str:
        """Keep a key's text under a name; returns its id."""
        self.site.keys[name] = made["key"]
        return str(made["id"])

    def infer(self, key: str, model: str = "", tokens: int = 6) -> dict[str, Any]:
        body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "logprobs": 2}
        return dict(self.call("POST", "/v1/completions", body, key=key))

    def upload(self, key: str, repo: str, folder: Path) -> None:
        begun = self.call("POST", "/v2/adapters/upload", {"repo": repo}, key=key)
        for name in PARTS:
            self.http.put(begun["presignedUrls"][name], content=(folder / name).read_bytes()).raise_for_status()
        self.call("PUT", "/v2/adapters/upload/", {"uploadToken": begun["uploadToken"]}, key=key)

    def rows(self, key: str = "admin") -> list[dict[str, Any]]:
        path = "/admin/ledger" if key == "admin" else "/v1/account/ledger"
        return list(self.call("GET", f"{path}?limit=1000", key=key)["rows"])

    def shipped(self, num_rows: int) -> None:
        wait_for(lambda: len(self.rows()) >= num_rows)


def write_models(folder: Path) -> dict[str, Path]:
    """A random base in bf16, one local adapter, and five to upload."""
    base = make_base(
        folder / BASE,
        vocab_size=330,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM.from_pretrained(base.directory, dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.norm.weight.mul_(8)  # logits far apart, so that every processor draws the same tokens
    model.save_pretrained(base.directory)
    save_byte_level(base.directory)
    shapes = {
        "triage-1": LoraConfig(r=4, lora_alpha=16, target_modules=ALL),
        "triage-2": LoraConfig(r=4, lora_alpha=16, target_modules=ALL),
        "triage-3": LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True),
        "house-1": LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj", "o_proj"], use_dora=True),
        "own-1": LoraConfig(r=3, lora_alpha=9, target_modules=["gate_proj", "up_proj"]),
    }
    made = {
        name: make_adapter(base, folder / ".made" / name, shape, seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    tone = make_adapter(base, folder / "adapters" / "tone", LoraConfig(r=4, lora_alpha=16, target_modules=ALL), seed=9)
    (tone / "README.md").unlink(missing_ok=True)
    for path in (tone, *made.values()):
        config = json.loads((path / PARTS[0]).read_text(encoding="utf-8"))
        (path / PARTS[0]).write_text(json.dumps(config | {"base_model_name_or_path": BASE}), encoding="utf-8")
    return made


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(folder)
    (fresh_cache(folder)).chmod(0o700)
    made = write_models(folder)
    open_books(site)
    with site.serving("2025-09-20T10:05:00") as server:
        fill(server, made)
    with site.serving("2025-10-10T09:00:00") as server:
        october(server)
    with site.serving("2025-10-20T09:00:00") as server:
        october_at_another_price(server)
    with site.serving("2025-11-05T12:00:00") as server:
        november(server)
        told = answers(server)
    told["in_ledger"] = leave_unshipped(site)
    told["booked"] = book_on_a_copy(site)
    told["packed"] = packed(site)
    finish(site, told)


def open_books(site: Site) -> None:
    """The first start: a control plane alone, which prints the operator's key, and a price for the base."""
    with site.running("control", "2025-09-20T10:00:00", r"answers at (http://[^\s;]+)[^\0]*?pb_") as control:
        found = re.search(r"pb_\w+", control.log.read_text())
        assert found is not None
        site.keys["admin"] = found[0]
        control.call("POST", "/admin/prices", {"base": BASE, "input_nanousd": 123_457, "output_nanousd": 654_321})


def fill(server: Client, made: dict[str, Path]) -> None:
    """September: tenants, keys of every kind, uploads of every state, and the first usage."""
    limits = {"requests_per_minute": 10_000, "adapters": 20, "adapter_bytes": 10_000_000, "max_rank": 32}
    tenants: list[dict[str, Any]] = [
        {"id": "acme", "name": "Acme & Söhne", "email": "ada@acme.example", "plan": "pro", "limits": limits},
        {"id": "beta", "name": "Beta", "credit_nanousd": 7 * NANO},
        {"id": "gone", "name": "Gone"},
        {"id": "shut", "name": "Shut"},
    ]
    ids = {}
    for tenant in tenants:
        reply = server.call("POST", "/admin/tenants", tenant)
        ids[tenant["id"]] = server.keep(tenant["id"], reply["key"])
    server.call("POST", "/admin/tenants/acme/credits", {"id": "grant-1", "nanousd": 3 * NANO, "reason": "paid"})
    make_keys(server)
    server.call("PUT", f"/admin/keys/{ids['beta']}/limits", {"requests_per_minute": 5_000})
    for repo in ("triage", "house"):
        server.call("POST", "/v2/repos", {"name": repo, "description": f"of {repo}"}, key="acme")
    server.call("POST", "/v2/repos", {"name": "own"}, key="beta")
    for key, name in (
        *(("acme", f"triage-{number}") for number in (1, 2, 3)),
        *(("acme_upload", "house-1"), ("beta", "own-1")),
    ):
        server.upload(key, name.partition("-")[0], made[name])
    server.call("PUT", "/v2/repos/triage/version/2", {"archived": True}, key="acme")
    server.call("PUT", "/v2/repos/triage/aliases/prod", {"version": 1}, key="acme")
    server.call("POST", "/v2/repos/triage/shares", {"tenants": ["beta"]}, key="acme")
    server.call("PUT", "/v2/repos/house", {"public": True}, key="acme")
    config = {"baseModel": BASE, "minReplicas": 0, "maxReplicas": 2, "cooldownTime": 600, "customArgs": ["--x"]}
    server.call(
        "POST", "/v2/deployments", {"name": "acme-own", "config": config, "description": "dedicated"}, key="acme"
    )
    for key, model in (("acme", ""), ("acme_query", "triage/1"), ("beta", "acme/triage/prod"), ("gone", "tone")):
        server.infer(key, model)
    server.shipped(4)


def make_keys(server: Client) -> None:
    limits = {"requests_per_minute": 3_000, "monthly_budget_nanousd": 2 * NANO}
    wanted: dict[str, dict[str, Any]] = {
        "acme_query": {"scopes": ["query"], "limits": limits},
        "acme_upload": {"scopes": ["upload"]},
        "acme_old": {"scopes": ["query", "upload"]},
        "acme_revoked": {"scopes": ["query"]},
        "acme_expired": {"scopes": ["query", "upload"], "expires_in_s": 3_600},
        "acme_later": {"scopes": ["query"], "expires_in_s": 3_600 * 86_400},
    }
    ids = {
        name: server.keep(name, server.call("POST", "/admin/tenants/acme/keys", {"name": name, **body}))
        for name, body in wanted.items()
    }
    server.keep("acme_rotated", server.call("POST", f"/admin/keys/{ids['acme_old']}/rotate", {"grace_s": 0}))
    server.call("DELETE", f"/admin/keys/{ids['acme_revoked']}")
    body = {"name": "acme_made", "scopes": ["query"], "limits": {"concurrent_streams": 8}}
    server.keep("acme_made", server.call("POST", "/v1/account/keys", body, key="acme"))


def october(server: Client) -> None:
    """Lines of several versions, a price for later, and a correction of a row of the month before."""
    body = {"base": BASE, "input_nanousd": 98_765, "output_nanousd": 500_003, "effective_in_s": 5 * 86_400}
    server.call("POST", "/admin/prices", body)
    for tokens in (3, 5, 9):
        for key, model in (
            *(("acme", name) for name in ("", "triage", "triage/1", "tone", "house/1")),
            *(("acme_made", "triage/prod"), ("beta", "acme/triage/prod"), ("beta", "own"), ("beta", "acme/house")),
        ):
            server.infer(key, model, tokens)
    server.shipped(4 + 27)
    september = next(row for row in reversed(server.rows()) if row["adapter"] == "triage/1" and row["tenant"] == "acme")
    correct(server, september, "fix-1", prompt_tokens=-3, completion_tokens=-1, reason="a stream that broke")


def october_at_another_price(server: Client) -> None:
    for key, model in (
        *(("acme", name) for name in ("triage", "triage/1", "")),
        *(("beta", name) for name in ("acme/triage/1", "acme/house", "own", "tone")),
    ):
        for tokens in (4, 7):
            server.infer(key, model, tokens)
    server.shipped(32 + 14)
    rows = [row for row in server.rows() if row["tenant"] == "acme" and row["adapter"] == "triage/3"]
    correct(server, rows[0], "fix-2", prompt_tokens=-2, reason='charged twice, see "ticket 17"')
    correct(server, rows[-1], "fix-3", completion_tokens=-1, reason="<i>no markup</i>")


def november(server: Client) -> None:
    """October is closed; a correction of one of its rows belongs to November. Two tenants end."""
    wait_for(lambda: server.http.get("/health").is_success)
    row = next(row for row in server.rows() if row["tenant"] == "acme" and row["adapter"] == "house/1")
    correct(server, row, "fix-4", prompt_tokens=-1, reason="not on October's invoice")
    server.call("POST", "/admin/tenants/gone/suspend")
    server.call("POST", "/admin/tenants/shut/close")
    server.call("POST", "/admin/tenants/beta/credits", {"id": "grant-2", "nanousd": -NANO, "reason": "taken back"})
    server.infer("acme", "triage")
    server.shipped(50)


def correct(server: Client, row: dict[str, Any], correction: str, *, reason: str, **tokens: int) -> None:
    body = {"id": correction, "corrects": row["id"], "reason": reason, **tokens}
    server.call("POST", "/admin/corrections", body)


def answers(server: Client) -> dict[str, Any]:
    """This version's answers about everything; the invoices of two closed months become files, in every form."""
    for tenant, month in (("acme", "2025-09"), ("acme", "2025-10"), ("beta", "2025-10")):
        for form, ending in FORMS.items():
            reply = server.http.get(
                f"/admin/invoices/{tenant}/{month}?format={form}",
                headers={"authorization": f"Bearer {server.site.keys['admin']}"},
            )
            target = server.site.folder / "invoices" / f"{tenant}-{month}.{ending}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(reply.raise_for_status().content)
    tenants = ("acme", "beta", "gone", "shut")
    return {
        "tenants": {name: server.call("GET", f"/admin/tenants/{name}") for name in tenants},
        "keys": {name: server.call("GET", f"/admin/tenants/{name}/keys")["keys"] for name in tenants},
        "credits": {name: server.call("GET", f"/admin/tenants/{name}/credits")["credits"] for name in tenants},
        "repos": {
            name: server.call("GET", f"/v2/repos/{name}", key=key)
            for key, name in (("acme", "triage"), ("acme", "house"), ("beta", "own"))
        },
        "deployments": server.call("GET", "/v2/deployments?type=dedicated", key="acme")["data"],
        "prices": server.call("GET", "/admin/prices")["prices"],
        "ledger": server.rows(),
        "usage": server.call("GET", "/admin/usage?month=2025-10&by=tenant,base,adapter")["usage"],
        "texts": {
            model: chosen(server.infer(key, model))
            for key, model in (("acme", "tone"), ("acme", "triage/1"), ("acme", "triage/3"), ("beta", "acme/triage/1"))
        },
    }


def chosen(reply: dict[str, Any]) -> str:
    """A greedy reply's text, each of whose tokens led the next best by far: other processors draw the same."""
    told = reply["choices"][0]["logprobs"]
    for top in told["top_logprobs"]:
        best, *others = sorted(top.values(), reverse=True)  # no other where both have the same text
        assert all(best - other > 0.1 for other in others), told
    return str(reply["choices"][0]["text"])


def leave_unshipped(site: Site) -> list[str]:
    """Usage that no control plane has: three replies, a stream whose engine died, and one whose server died.

    Returns the ids of the rows that were in the ledger when it ended.
    """
    with site.serving("2025-11-06T08:00:00", "metering.ship_s=86400", is_killed=True) as server:
        wait_for(lambda: server.http.get("/health").is_success)
        for key, model in (("acme", ""), ("acme", "triage/1"), ("beta", "acme/triage/prod")):
            server.infer(key, model)
        engine = engine_of(server)
        with streaming(server, "acme", "triage/3"):
            engine.kill()
        wait_for(lambda: server.http.get("/health").is_success)
        server.infer("acme", "tone")
        engine = engine_of(server)
        with streaming(server, "beta", "own"):
            engine.suspend()  # so that it has not come to the end
            os.killpg(server.pid, signal.SIGKILL)
    with closing(sqlite3.connect(site.folder / "control" / "control.db")) as connection:
        return [str(row[0]) for row in connection.execute("SELECT id FROM ledger ORDER BY number")]


def engine_of(server: Client) -> psutil.Process:
    children = psutil.Process(server.pid).children()
    return next(each for each in children if "manylora.server.engine_client.process" in " ".join(each.cmdline()))


@contextmanager
def streaming(server: Client, key: str, model: str) -> Iterator[None]:
    """A long stream of which some tokens have come."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 230, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {server.site.keys[key]}"}
    with server.http.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
        lines = (line for line in reply.iter_lines() if line)
        for _ in range(4):
            next(lines)
        yield
        try:
            for _ in lines:
                pass
        except httpx2.TransportError:
            pass


def book_on_a_copy(site: Site) -> list[dict[str, Any]]:
    """The rows that this version itself books of the usage that is left, when it starts again on a copy."""
    copied = Path(f"{site.folder}-copy")
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(site.folder, copied, symlinks=True)
    copy = Site(copied)
    copy.keys = site.keys
    with copy.serving("2025-11-07T08:00:00") as server:
        before = {row["id"] for row in told_rows(site)}
        server.shipped(len(before) + 6)
        rows = [row for row in server.rows() if row["id"] not in before]
    shutil.rmtree(copied)
    assert len(rows) == 6, rows
    for reason in ("engine_failure", "edge_lost"):
        [row] = [row for row in rows if row["finish_reason"] == reason]
        assert 0 < row["charged_completion_tokens"] < 200, row
    return rows


def told_rows(site: Site) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(site.folder / "control" / "control.db")) as connection:
        return [{"id": row[0]} for row in connection.execute("SELECT id FROM ledger")]


def packed(site: Site) -> dict[str, Any]:
    """The folder of each adapter whose packed image lies in the disk tier, by the beginning of its `.name` file."""
    folders = {"local:tone": "adapters/tone"} | {
        f"pbase:{path}": f"control/uploads/{path}"
        for path in ("acme/triage/1", "acme/triage/2", "acme/triage/3", "acme/house/1", "beta/own/1")
    }
    base = site.folder / BASE
    found = {
        "fingerprint": fingerprint(base, read_spec(base)),
        "folders": {hashlib.sha256(ref.encode()).hexdigest()[:40]: folder for ref, folder in folders.items()},
    }
    names = list(names_of_packed(site.folder, found))
    assert len(names) == 5, names
    assert all(name == expected for name, expected in names), names
    return found


def finish(site: Site, told: dict[str, Any]) -> None:
    """Write what the tests compare with, and the database's rows in a form that any database takes."""
    database = site.folder / "control" / "control.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.row_factory = sqlite3.Row
        names = [
            row["name"]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY rootpage")
            if not row["name"].startswith("sqlite_")
        ]
        rows = {name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in sorted(names)}
    for name, content in (("told", told), ("keys", site.keys), ("rows", rows)):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (site.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(site.folder / ".made")
    (site.folder / "cache" / "kernels").unlink()
    for path in (*site.folder.glob(".log-*"), site.settings):
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
