"""Two servers of one control plane that runs alone: one truth, one credit, and traffic through its outage."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from manylora.config.settings import load_config
from manylora.control.billing.prices import set_price
from manylora.control.process.opening import open_control
from tests.control.control_process import EDGE_TOKEN, ControlProcess, running_control
from tests.server.app.test_server_process import forked_server
from tests.support.serving import READS, own_port
from tests.support.waiting import PATIENCE_S, wait_for

INPUT, OUTPUT = 3, 7
LEASE = 2000
CREDIT = 10_000
WORST = 1000  # nano-dollars, above what one request sets aside


@dataclass
class Site:
    """The control plane's process, its folder and its client, and clients of two servers of it.

    Each test has a tenant of its own.
    """

    kept: Path
    plane: ControlProcess
    told: httpx2.Client
    servers: tuple[httpx2.Client, httpx2.Client]

    def new_tenant(self, code: str, **terms: object) -> str:
        """Made through the first server; returns its key."""
        headers = {"authorization": f"Bearer {self.plane.admin_key}"}
        made = self.servers[0].post("/admin/tenants", json={"id": code, **terms}, headers=headers)
        assert made.status_code == 201, made.text
        return str(made.json()["key"]["key"])

    def generate(self, server: int, key: str) -> httpx2.Response:
        body = {"model": "", "prompt": "Hi", "max_tokens": 20}
        return self.servers[server].post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})


def charged(plane: httpx2.Client, key: str) -> int:
    account = plane.get("/v1/account", headers={"authorization": f"Bearer {key}"}).json()
    return int(account["balance"]["charged_nanousd"])


def cost_of(reply: httpx2.Response) -> int:
    usage = reply.json()["usage"]
    return int(usage["prompt_tokens"] * INPUT + usage["completion_tokens"] * OUTPUT)


def make_price(kept: Path, database_url: str = "") -> None:
    async def main() -> None:
        flags = {"control.dir": str(kept), "control.database_url": database_url}
        control = await asyncio.to_thread(open_control, load_config(flags=flags, environ={}), is_key_needed=False)
        now_ms = control.now_ms()
        terms = {"input_nanousd": INPUT, "output_nanousd": OUTPUT, "effective_ms": now_ms, "now_ms": now_ms}
        async with control.database.write() as connection:
            await set_price(connection, "tiny", **terms)
        await control.database.close()

    asyncio.run(main())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    tmp_path = tmp_path_factory.mktemp("site")
    kept = tmp_path / "kept"
    make_price(kept)
    with ExitStack() as stack:
        plane = stack.enter_context(running_control(kept, READS, port=own_port()))  # one that a second start finds free
        given = (
            f"control.url={plane.url}",
            f"control.edge_token={EDGE_TOKEN}",
            f"control.lease_nanousd={LEASE}",
            "control.poll_s=0.1",
            "metering.ship_s=0.05",
            "server.auth=on",
        )
        clients = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            _, client = stack.enter_context(forked_server(tmp_path / name, *given))
            clients.append(client)
        told = stack.enter_context(httpx2.Client(base_url=plane.url, timeout=PATIENCE_S))
        yield Site(kept, plane, told, (clients[0], clients[1]))


@pytest.mark.long
def test_what_one_server_is_told_the_other_knows(site: Site) -> None:
    key = site.new_tenant("acme")
    wait_for(lambda: all(site.generate(server, key).status_code == 200 for server in (0, 1)))
    headers = {"authorization": f"Bearer {site.plane.admin_key}"}
    assert site.servers[0].post("/admin/tenants/acme/suspend", headers=headers).status_code == 200
    wait_for(lambda: site.generate(1, key).status_code == 403)
    wait_for(lambda: site.generate(0, key).status_code == 403)


@pytest.mark.long
def test_two_servers_spend_one_credit_and_no_more(site: Site) -> None:
    key, replies = site.new_tenant("beta", credit_nanousd=CREDIT), []
    wait_for(lambda: all(site.generate(server, key).status_code != 401 for server in (0, 1)))
    while True:
        pair = [site.generate(server, key) for server in (0, 1)]
        replies += pair
        assert {reply.status_code for reply in pair} <= {200, 429}
        if {reply.status_code for reply in pair} == {429}:
            break
    assert pair[0].json()["error"]["code"] == "insufficient_quota"
    spent = sum(cost_of(reply) for reply in replies if reply.status_code == 200)
    wait_for(lambda: charged(site.told, key) >= spent)
    assert CREDIT - 2 * (LEASE + WORST) < charged(site.told, key) <= CREDIT


def test_an_outage_stops_changes_and_not_traffic_and_its_usage_comes_later(site: Site) -> None:
    """The last test of this file, because it kills the control plane that they share."""
    key = site.new_tenant("gamma", credit_nanousd=10**9)
    wait_for(lambda: site.generate(0, key).status_code == 200)
    site.plane.process.kill()
    site.plane.process.wait()
    before = [site.generate(0, key) for _ in range(3)]
    assert [reply.status_code for reply in before] == [200] * 3
    unknown = "pb_00000000_" + "0" * 43
    assert site.generate(0, unknown).status_code == 401
    headers = {"authorization": f"Bearer {site.plane.admin_key}"}
    assert site.servers[0].post("/admin/tenants/gamma/suspend", headers=headers).status_code == 503
    port = int(site.plane.url.rpartition(":")[2])
    with running_control(site.kept, is_first=False, port=port):
        replied = site.generate(0, key)
        least = sum(map(cost_of, [*before, replied]))
        wait_for(lambda: charged(site.told, key) >= least)
