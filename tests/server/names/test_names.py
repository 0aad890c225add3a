"""A name means one thing, and what is listed is what is served: over every way of naming an adapter."""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.sources.local import LocalSource
from manylora.ids import TenantId
from manylora.tenancy import RepositoryFacts
from tests.server.conftest import House, open_house
from tests.support.waiting import PATIENCE_S

InHouse = Callable[..., None]
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
PARTS = ("adapter_config.json", "adapter_model.safetensors")
REPOSITORIES = (
    RepositoryFacts(owner=ACME, name="support", versions=(1, 3), aliases=(("prod", 1),)),
    RepositoryFacts(owner=ACME, name="triage", versions=(2,)),  # as a local adapter's
    RepositoryFacts(owner=ACME, name="archived"),
    RepositoryFacts(owner=ACME, name="tiny", versions=(1,)),  # as the base's; made before that was refused
    RepositoryFacts(owner=GLOBEX, name="open", versions=(1, 2), aliases=(("best", 2),), is_public=True),
    RepositoryFacts(owner=GLOBEX, name="lent", versions=(1,), shared_with=(ACME,)),
    RepositoryFacts(owner=GLOBEX, name="tone", versions=(1,), is_public=True),  # as the local adapter `globex/tone`
    RepositoryFacts(owner=GLOBEX, name="secret", versions=(1,)),
)
BOTH = ("local", "pbase", "hub")


def place(root: Path, name: str) -> Path:
    folder = root / "adapters" / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        (folder / part).write_text("{}", encoding="utf-8")
    return folder


def fill(directory: Path) -> None:
    """Local adapters that meet the names of repositories and of the base."""
    for name in ("archived", "support/own", "globex/tone", "tiny", "Tiny", "other/deep/one"):
        place(directory, name)
    (directory / "adapters" / "out").symlink_to(directory)
    (directory / "adapters" / "link").symlink_to("triage")


async def meaning(house: House, name: str, tenant: str = "acme", **more: str) -> tuple[int, AdapterRef | None]:
    """The status that a request with a name gets, and the adapter it is run with."""
    house.engine.submitted.clear()
    body = {"inputs": "Hi", "parameters": {"adapter_id": name, "max_new_tokens": 1, **more}}
    reply = await house.post(f"/{tenant}/deployments/v2/llms/tiny/generate", body)
    return reply.status_code, house.engine.submitted[0].adapter if reply.status_code == 200 else None


async def models(house: House, tenant: str = "acme") -> list[str]:
    reply = await house.client.get(f"/{tenant}/deployments/v2/llms/tiny/v1/models")
    return [entry["id"] for entry in reply.json()["data"]]


async def model(house: House, name: str, tenant: str = "acme") -> httpx2.Response:
    return await house.client.get(f"/{tenant}/deployments/v2/llms/tiny/v1/models/{quote(name, safe='/:')}")


def pbase(owner: str, name: str) -> AdapterRef:
    return AdapterRef(SourceName.PBASE, name, tenant=owner)


def local(name: str) -> AdapterRef:
    return AdapterRef(SourceName.LOCAL, name)


MEANINGS = {
    "support": pbase("acme", "support/3"),
    "support/1": pbase("acme", "support/1"),
    "support/prod": pbase("acme", "support/1"),
    "support/prod/": pbase("acme", "support/1"),
    "acme/support/3": pbase("acme", "support/3"),
    "pbase://support/1": pbase("acme", "support/1"),
    "pbase://acme/support/1": pbase("acme", "support/1"),
    "support/own": None,  # the first word is a repository of its own
    "support/2": None,
    "support/0": None,
    "support/03": None,
    "Support": None,
    "triage": pbase("acme", "triage/2"),
    "triage/2": pbase("acme", "triage/2"),
    "archived": None,
    "archived/1": None,
    "tiny/1": pbase("acme", "tiny/1"),
    "Tiny": local("Tiny"),
    "link": local("link"),
    "local://link": local("link"),
    "local://triage": local("triage"),
    "out": None,
    "out/adapters/triage": None,
    "other/deep/one": local("other/deep/one"),
    "other%2Fdeep%2Fone": None,
    "team/tone": local("team/tone"),
    "team/tone/": local("team/tone"),
    "globex/open": pbase("globex", "open/2"),
    "globex/open/1": pbase("globex", "open/1"),
    "globex/open/best": pbase("globex", "open/2"),
    "globex/lent": pbase("globex", "lent/1"),
    "globex/tone": local("globex/tone"),
    "globex/tone/1": pbase("globex", "tone/1"),
    "globex/secret": None,
    "globex/secret/1": None,
    "lent": None,
    "nobody": None,
    "org/name": None,
}


def test_each_name_means_one_thing_to_the_list_and_to_requests(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.local = LocalSource((tmp_path / "adapters",))
        listed = await models(house)
        assert len(listed) == len(set(listed))
        for name, ref in MEANINGS.items():
            status, ran = await meaning(house, name)
            assert ((status == 200), ran) == (ref is not None, ref), name
            told = await model(house, name)
            assert told.status_code == (404 if ref is None else 200), name
            if ref is not None:
                assert told.json()["id"] in listed, name
        for name in ("team//tone", "../adapters/triage", "..", "/triage", " triage", "/"):
            assert (await meaning(house, name))[0] in (404, 422), name
        for name in listed:
            told = await model(house, name)
            assert (told.status_code, told.json()["id"]) == (200, name)
            status, ran = await meaning(house, name)
            assert (status, ran) == (200, MEANINGS.get(name, ran)), name
            assert (ran is None) == (name == "tiny"), name
        named = {name for name, ref in MEANINGS.items() if ref is not None}
        longer = {"acme/support/3", "pbase://support/1", "pbase://acme/support/1"}
        other_spellings = longer | {"support/prod/", "team/tone/", "local://link", "local://triage"}
        more = {"tiny", "support/3"} | {f"globex/{name}" for name in ("open/2", "lent/1")}
        assert set(listed) == (named - other_spellings) | more

    fill(tmp_path)
    in_house(scenario, sources=BOTH, repositories=REPOSITORIES)


def test_another_tenant_sees_and_gets_its_own_meanings(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        listed = await models(house, "globex")
        assert {"open", "open/best", "secret/1", "tone", "globex/tone", "triage", "archived"} <= set(listed)
        assert not [name for name in listed if name.startswith("acme/")]
        assert await meaning(house, "triage", "globex") == (200, local("triage"))
        assert await meaning(house, "globex/tone", "globex") == (200, local("globex/tone"))
        assert await meaning(house, "tone", "globex") == (200, pbase("globex", "tone/1"))

    fill(tmp_path)
    in_house(scenario, sources=BOTH, repositories=REPOSITORIES)


def test_a_repository_with_the_bases_name_is_reached_by_its_source(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for name in ("tiny", "tiny/", "", "__base_model__"):
            assert await meaning(house, name) == (200, None)
        assert await meaning(house, "tiny", adapter_source="pbase") == (200, pbase("acme", "tiny/1"))
        assert await meaning(house, "tiny", "globex", adapter_source="pbase") == (200, None)
        assert await meaning(house, "archived", adapter_source="pbase") == (404, None)
        assert await meaning(house, "triage", adapter_source="local") == (200, local("triage"))
        assert await meaning(house, "triage", adapter_source="pbase") == (200, pbase("acme", "triage/2"))
        assert await meaning(house, "globex/tone", adapter_source="pbase") == (200, pbase("globex", "tone/1"))

    in_house(scenario, sources=BOTH, repositories=REPOSITORIES)


def test_only_names_of_the_form_org_name_go_to_a_hub_that_is_the_default(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        assert await meaning(house, "org/name") == (200, AdapterRef(SourceName.HUB, "org/name"))
        assert await meaning(house, "org/name@v1") == (200, AdapterRef(SourceName.HUB, "org/name@v1"))
        for name in ("nobody", "a/b/c", "globex/secret", "support/2"):
            status, _ = await meaning(house, name)
            # What is another tenant's is told from what is nobody's by nothing.
            assert status == (200 if name == "globex/secret" else 404), name
        shutil.move(tmp_path / "adapters" / "team" / "tone" / PARTS[1], tmp_path / "kept")
        assert await meaning(house, "team/tone") == (200, local("team/tone"))  # never a hub's, though it is unfit now
        await meaning(house, "org/name", adapter_source="hub")
        await meaning(house, "triage/x", adapter_source="hub")
        place(tmp_path, "other/tone")
        await meaning(house, "other/tone", adapter_source="hub")
        listed = await models(house)
        assert {"org/name", "hub://triage/x", "hub://other/tone", "other/tone"} <= set(listed)
        assert "team/tone" not in listed
        for name in listed:
            assert (await model(house, name)).json()["id"] == name
            ran = (await meaning(house, name))[1]
            assert ran is None or (ran.source is SourceName.HUB) == (
                name.startswith(("hub://", "org/", "globex/secret"))
            )

    in_house(scenario, sources=BOTH, repositories=REPOSITORIES, served_as={"default_source": SourceName.HUB})


def test_folders_come_and_go_while_the_server_runs(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        house.engine.local = LocalSource((tmp_path / "adapters",))
        for _ in range(2):
            assert (await meaning(house, "fresh"))[0] == 404
            assert (await model(house, "fresh")).status_code == 404
            folder = place(tmp_path, "fresh")
            assert await meaning(house, "fresh") == (200, local("fresh"))
            assert ("fresh" in await models(house), (await model(house, "fresh")).status_code) == (True, 200)
            shutil.rmtree(folder)
            assert (await meaning(house, "fresh"))[0] == 404
            assert ("fresh" in await models(house), (await model(house, "fresh")).status_code) == (False, 404)

    in_house(scenario, sources=BOTH, repositories=REPOSITORIES)


def test_the_event_loop_never_touches_the_disk(
    in_house: InHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: House) -> None:
        here, touched = threading.get_ident(), []

        def guarded(name: str) -> None:
            really = getattr(os, name)

            def call(*arguments: object, **named: object) -> object:
                if threading.get_ident() == here:
                    touched.append((name, arguments))
                return really(*arguments, **named)

            monkeypatch.setattr(os, name, call)

        for name in ("stat", "lstat", "listdir", "scandir", "open", "readlink"):
            guarded(name)
        for name in MEANINGS:
            await meaning(house, name)
            await model(house, name)
        await models(house)
        await house.client.get("/v1/adapters?tenant=acme")
        await house.client.get("/v1/adapters/support/1?tenant=acme")
        monkeypatch.undo()
        assert touched == []

    fill(tmp_path)
    (tmp_path / "registry").mkdir()
    registry = {"registry_dir": str(tmp_path / "registry")}
    in_house(scenario, sources=BOTH, repositories=REPOSITORIES, served_as=registry)


def test_what_lies_in_the_registrys_folder_alone_is_listed_as_it_is_served(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        listed = await models(house)
        assert {"kept", "kept/1", "kept/4"} <= set(listed)
        assert await meaning(house, "kept/4") == (200, pbase("acme", "kept/4"))
        assert (await meaning(house, "kept"))[1] == pbase("acme", "kept")
        for name in ("kept/2", "kept/own"):
            assert ((await meaning(house, name))[0], (await model(house, name)).status_code) == (404, 404)
            assert name not in listed
        assert "kept" not in await models(house, "globex")

    place(tmp_path, "kept/own")
    for number in ("1", "4"):
        (tmp_path / "registry" / "acme" / "kept" / number).mkdir(parents=True)
    registry = {"registry_dir": str(tmp_path / "registry")}
    in_house(scenario, sources=BOTH, repositories=REPOSITORIES, served_as=registry)


WORDS = st.sampled_from(["a", "b", "A", "tiny", "acme", "globex", "1", "2", "prod"])
NAMES = st.lists(WORDS, min_size=1, max_size=3).map("/".join)
FACTS = st.lists(
    st.builds(
        RepositoryFacts,
        owner=st.sampled_from([ACME, GLOBEX, TenantId("a")]),
        name=WORDS,
        versions=st.sets(st.integers(1, 2)).map(lambda found: tuple(sorted(found))),
        is_public=st.booleans(),
        shared_with=st.sampled_from([(), (ACME,), (GLOBEX,)]),
    ).map(lambda facts: _with_alias(facts)),
    max_size=5,
    unique_by=lambda facts: (facts.owner, facts.name),
)


def _with_alias(facts: RepositoryFacts) -> RepositoryFacts:
    from dataclasses import replace

    return replace(facts, aliases=(("prod", facts.versions[0]),)) if facts.versions else facts


@settings(
    max_examples=settings().max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(facts=FACTS, folders=st.sets(NAMES, max_size=4), asked=st.sets(NAMES, max_size=12))
def test_what_is_listed_is_what_is_served(
    tmp_path: Path, facts: list[RepositoryFacts], folders: set[str], asked: set[str]
) -> None:
    async def main() -> None:
        shutil.rmtree(tmp_path / "adapters", ignore_errors=True)
        for name in folders:
            place(tmp_path, name)
        async with open_house(tmp_path, sources=BOTH, repositories=facts) as house:
            house.engine.local = LocalSource((tmp_path / "adapters",))
            for tenant in ("acme", "globex"):
                listed = await models(house, tenant)
                for name in {*listed, *asked}:
                    status, ran = await meaning(house, name, tenant)
                    told = await model(house, name, tenant)
                    assert (status == 200) == (told.status_code == 200), name
                    is_longer = name.startswith((f"{tenant}/", "tiny/"))  # the tenant's code or the base before it
                    is_listed = name in listed or (is_longer and told.json().get("id") in listed)
                    assert (status == 200) == is_listed, name
                    if name in listed:
                        assert (told.json()["id"], ran is None) == (name, name == "tiny")

    asyncio.run(main())


def test_a_file_system_that_hangs_holds_up_only_who_needs_it(
    in_house: InHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: House) -> None:
        hangs, locate = threading.Event(), LocalSource.locate

        def slow(source: LocalSource, ref: AdapterRef) -> object:
            if ref.id.startswith("hung"):
                hangs.wait(PATIENCE_S)
            return locate(source, ref)

        monkeypatch.setattr(LocalSource, "locate", slow)
        waiting = [asyncio.ensure_future(model(house, f"hung/{number}")) for number in range(20)]
        await asyncio.sleep(0)
        assert await meaning(house, "support/1") == (200, pbase("acme", "support/1"))
        assert await meaning(house, "tiny") == (200, None)
        assert not any(each.done() for each in waiting)
        hangs.set()
        assert {reply.status_code for reply in await asyncio.gather(*waiting)} == {404}

    registry = {"default_source": SourceName.HUB}
    in_house(scenario, sources=BOTH, repositories=REPOSITORIES, served_as=registry)


def test_lists_that_are_asked_for_at_once_share_a_walk_of_the_roots(
    in_house: InHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: House) -> None:
        walks, list_names = [], LocalSource.list

        def counted(source: LocalSource) -> list[str]:
            walks.append(1)
            return list_names(source)

        monkeypatch.setattr(LocalSource, "list", counted)
        lists = await asyncio.gather(*(models(house) for _ in range(50)))
        assert all(names == lists[0] for names in lists)
        assert len(walks) < 25
        place(tmp_path, "later")
        assert "later" in await models(house)

    in_house(scenario, sources=BOTH, repositories=REPOSITORIES)


def test_the_error_of_an_unknown_adapter_names_it_and_not_the_model_beside_it(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for fields, told in (
            ({"adapter_id": "support/9"}, "The model `support/9` does not exist or you do not have access to it."),
            (
                {"merged_adapters": {"ids": ["support/1", "support/9"], "weights": [1, 1]}},
                "Adapter 'support/9' was not",
            ),
            ({"merged_adapters": {"ids": ["support/1", "tiny"], "weights": [1, 1]}}, "`tiny` is the base model"),
            ({"adapters": [{"id": "support/1"}, {"id": "support/9"}]}, "Adapter 'support/9' was not"),
            ({"adapters": [{"id": "support/1"}, {"id": "tiny"}]}, "`tiny` is the base model"),
        ):
            for beside in ({}, {"model": ""}, {"model": "tiny"}):
                body = {"prompt": "Hi", "max_tokens": 1, **beside, **fields}
                reply = await house.post("/acme/deployments/v2/llms/tiny/v1/completions", body)
                assert reply.status_code == 404
                assert reply.json()["error"]["message"].startswith(told), (beside, fields)

    in_house(scenario, sources=BOTH, repositories=REPOSITORIES)
