"""The traffic of a soak: streams that may leave, uploads, switched aliases, deletions, pins, readers, visitors."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx2

from benchmarks.soak.console import NoEntry, Visitor
from manylora.bench.faults.chaos import read_stream
from manylora.bench.faults.chaos_processes import Processes
from manylora.bench.faults.chaos_verdict import Streams

FILES = ("adapter_config.json", "adapter_model.safetensors")
MOST_VERSIONS = 4
LEAVES, GIVES_UP = 0.15, 0.05
"""Shares of requests whose client leaves after some tokens, and before it may have one."""
OWN, BASE = 0.2, 0.1
"""Shares of requests for the tenant's own uploads, and for the base."""
READ = ("/v1/models", "/v1/account", "/v1/account/usage?by=adapter,day", "/v1/account/keys", "/v2/repos")
READ_BY_OPERATOR = ("/metrics", "/v1/adapters?limit=1000", "/admin/tenants", "/admin/usage?by=tenant")
VISIT_PAUSE_S = 5.0
"""Mean pause of a visitor of the console between two visits: the server spends 0.2 s of a core on each sign-in."""


@dataclass
class Tenant:
    """A tenant of the run, with the versions of its repository that it may name."""

    key: str
    versions: list[int] = field(default_factory=list)

    def names(self) -> list[str]:
        return ["own", "own/prod", *(f"own/{version}" for version in self.versions)]


@dataclass
class Traffic:
    """All traffic of a run.

    names    the local adapters, drawn for the next request
    folders  adapters to upload
    done     acts that succeeded, by verb
    refused  replies to other requests than streams, by verb and status, of 4xx and 5xx
    visitors  persons at the console: each tenant and the operator
    """

    processes: Processes
    admin: str
    tenants: Sequence[Tenant]
    names: Iterator[Mapping[str, object]]
    folders: Sequence[Path]
    vocab: int
    source: Random
    streams: Streams = field(default_factory=Streams)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    visitors: list[Visitor] = field(init=False)

    def __post_init__(self) -> None:
        self.visitors = [Visitor(key) for key in (self.admin, *(tenant.key for tenant in self.tenants))]

    async def run(self, seconds: float, streams: int, pause_s: float) -> None:
        """Keep all traffic going for some seconds, and wait for the ends of its requests.

        Args:  pause_s  mean pause of each owner, operator and reader between two acts
        """
        self.streams.is_over = False
        acts = [self._own(tenant) for tenant in self.tenants] + [self._operate(), self._read()]
        own = [asyncio.create_task(self._stream(Random(self.source.random()))) for _ in range(streams)]
        own += [asyncio.create_task(self._repeat(act, pause_s)) for act in acts]
        own += [asyncio.create_task(self._repeat(self._visit(each), VISIT_PAUSE_S)) for each in self.visitors]
        await asyncio.sleep(seconds)
        self.streams.is_over = True
        await asyncio.gather(*own)

    async def _stream(self, source: Random) -> None:
        while not self.streams.is_over:
            tenant = source.choice(self.tenants)
            body = {
                **self._model(tenant, source),
                "prompt": [source.randrange(3, self.vocab) for _ in range(source.randint(1, 40))],
                "max_tokens": source.randint(4, 48),
                "ignore_eos": True,
                "stream": source.random() < 0.9,
            }
            leaves_after = source.randint(1, 20) if source.random() < LEAVES else None
            patience_s = source.uniform(0.0, 0.3) if source.random() < GIVES_UP else 60.0
            try:
                async with asyncio.timeout(patience_s):
                    await read_stream(self.processes, self.streams, body, tenant.key, leaves_after)
            except (httpx2.HTTPError, ValueError, TimeoutError):
                await asyncio.sleep(0.05)

    def _model(self, tenant: Tenant, source: Random) -> Mapping[str, object]:
        kind = source.random()
        if kind < BASE:
            return {"model": ""}
        return {"model": source.choice(tenant.names())} if kind < BASE + OWN else next(self.names)

    async def _repeat(self, act: "Act", pause_s: float) -> None:
        """Do an act over and over. A connection that ends with an engine or a process is no end of it."""
        async with httpx2.AsyncClient(
            base_url=self.processes.url, timeout=60, trust_env=False, verify=self.processes.tls
        ) as client:
            while not self.streams.is_over:
                try:
                    await act(client)
                except (httpx2.HTTPError, NoEntry, KeyError, ValueError):
                    self.done["broken off"] += 1
                await asyncio.sleep(self.source.uniform(0.0, 2 * pause_s))

    async def _ask(
        self, client: httpx2.AsyncClient, verb: str, key: str, method: str, path: str, body: object = None
    ) -> httpx2.Response:
        reply = await client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
        if reply.is_success:
            self.done[verb] += 1
        else:
            self.refused[f"{verb} {reply.status_code}"] += 1
        return reply

    def _own(self, tenant: Tenant) -> "Act":
        async def act(client: httpx2.AsyncClient) -> None:
            kind = self.source.random()
            if len(tenant.versions) < 2 or (kind < 0.4 and len(tenant.versions) < MOST_VERSIONS):
                await self._upload(client, tenant)
            elif kind < 0.7:
                body = {"version": self.source.choice(tenant.versions)}
                await self._ask(client, "alias", tenant.key, "PUT", "/v2/repos/own/aliases/prod", body)
            else:
                version = tenant.versions.pop(self.source.randrange(len(tenant.versions)))
                await self._ask(client, "delete", tenant.key, "DELETE", f"/v2/repos/own/version/{version}")

        return act

    async def _upload(self, client: httpx2.AsyncClient, tenant: Tenant) -> None:
        """Upload the next version; half of the uploads send their weights in two parts, over two connections."""
        made = {"name": "own", "existsOk": True}
        await self._ask(client, "repo", tenant.key, "POST", "/v2/repos", made)
        wanted = {"repo": "own", "alias": "prod"}
        begun = await self._ask(client, "begin", tenant.key, "POST", "/v2/adapters/upload", wanted)
        if not begun.is_success:
            return
        folder = self.source.choice(self.folders)
        for name in FILES:
            data = (folder / name).read_bytes()
            address = httpx2.URL(begun.json()["presignedUrls"][name])
            middle = self.source.choice((0, len(data) // 2))
            parts = [(0, middle), (middle, len(data))] if middle else [(0, len(data))]
            for first, last in parts:
                head = {"content-range": f"bytes {first}-{last - 1}/{len(data)}"}
                async with httpx2.AsyncClient(timeout=60, trust_env=False, verify=self.processes.tls) as own:
                    (await own.put(address, content=data[first:last], headers=head)).raise_for_status()
        token = {"uploadToken": begun.json()["uploadToken"]}
        ended = await self._ask(client, "upload", tenant.key, "PUT", "/v2/adapters/upload/", token)
        if ended.is_success:
            tenant.versions.append(int(ended.json()["tag"]))

    def _operate(self) -> "Act":
        async def act(client: httpx2.AsyncClient) -> None:
            name = str(next(self.names)["model"])
            action = self.source.choice(("preload", "pin", "unpin", "evict", "verify", "delete"))
            if action == "delete" and self.source.random() > 0.1:  # a deleted name stays unknown
                return
            path = f"/v1/adapters/{name}?source=local&wait=5"
            if action == "delete":
                await self._ask(client, action, self.admin, "DELETE", path)
            else:
                await self._ask(client, action, self.admin, "POST", path, {"action": action})

        return act

    def _read(self) -> "Act":
        async def act(client: httpx2.AsyncClient) -> None:
            tenant = self.source.choice(self.tenants)
            for path in READ:
                await self._ask(client, "read", tenant.key, "GET", path)
            for path in READ_BY_OPERATOR:
                await self._ask(client, "read", self.admin, "GET", path)

        return act

    def _visit(self, visitor: Visitor) -> "Act":
        async def act(client: httpx2.AsyncClient) -> None:
            client.cookies.clear()
            await visitor.visit(client)
            self.done["visit of the console"] += 1

        return act

    def client(self) -> httpx2.AsyncClient:
        """Return a client with the operator's key."""
        headers = {"authorization": f"Bearer {self.admin}"}
        url, tls = self.processes.url, self.processes.tls
        return httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, verify=tls, headers=headers)

    async def burst(self, number: int) -> None:
        """Read the operator's lists many times at once."""
        async with self.client() as client:
            await asyncio.gather(*(client.get("/admin/tenants") for _ in range(number)))

    async def unpin_all(self) -> int:
        """Take off all pins of the operator; return the number of pins of requests that are left."""
        async with self.client() as client:
            infos = await self._infos(client)
            for info in infos:
                if info["is_pinned"]:
                    path = f"/v1/adapters/{info['id']}?source={info['source']}&wait=10"
                    reply = await client.post(path, json={"action": "unpin"})
                    self.done["unpin at the end"] += reply.is_success
            return sum(int(str(info["pins"])) for info in await self._infos(client))

    async def _infos(self, client: httpx2.AsyncClient) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        page = {"has_more": True, "after": ""}
        while page["has_more"]:
            after = f"&after={page['after']}" if page["after"] else ""
            reply = (await client.get(f"/v1/adapters?limit=1000{after}")).raise_for_status()
            page = json.loads(reply.text)
            found += page["data"]
        return found


Act = Callable[[httpx2.AsyncClient], Awaitable[None]]
