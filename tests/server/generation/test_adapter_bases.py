"""The base of an adapter on a server of two: by its config, by the ingest of each engine, or as the request says."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterInfo, AdapterState
from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.errors import AdapterCorrupt, AdapterIncompatible, InvalidParameter, ManyloraError, Unavailable
from manylora.http.callers import ANONYMOUS
from manylora.merging import MergeRecipe
from manylora.server.app.application import create_app
from manylora.server.generation.routing import ModelRouter, Naming, open_models
from manylora.server.names.adapter_fields import AdapterFields
from tests.server.asgi_client import calling
from tests.server.fake_engine import FakeEngine
from tests.server.started_bases import started_bases

NO_FIT = AdapterIncompatible("its tensors have another shape")


@dataclass
class Two:
    """A router of the bases `org/small` and `org/large`, the engine of each, and the folder of their adapters."""

    models: ModelRouter
    small: FakeEngine
    large: FakeEngine
    folder: Path
    clock: ManualClock

    def adapter(self, name: str, base: object = None, *, fits: str = "small large") -> None:
        """Make a local adapter whose config names a base; every engine whose base it does not fit refuses it."""
        place = self.folder / "adapters" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        (place / "adapter_model.safetensors").write_text("{}")
        self.fits(name, fits)

    def fits(self, name: str, bases: str) -> None:
        for engine, base in ((self.small, "small"), (self.large, "large")):
            engine.texts.failures.pop(name, None)
            if base not in bases:
                engine.texts.failures[name] = NO_FIT

    async def base(self, name: str | None, **naming: Any) -> str:
        target = await self.models.target(Naming(name=name, **naming), ANONYMOUS)
        return f"{target.model.name} {'' if target.adapter is None else target.adapter.id}".rstrip()

    async def refusal(self, name: str | None, **naming: Any) -> ManyloraError:
        with pytest.raises(ManyloraError) as caught:
            await self.base(name, **naming)
        return caught.value


@asynccontextmanager
async def two_bases(folder: Path) -> AsyncIterator[Two]:
    clock = ManualClock()
    async with started_bases(folder, Config()) as ((small, large), started):
        models = open_models(started, clock)
        try:
            yield Two(models, small, large, folder, clock)
        finally:
            models.close()


def test_an_adapter_goes_to_the_base_of_its_config(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            for number, declared in enumerate(("org/large", "large", "/models/LARGE/", "elsewhere/Large")):
                two.adapter(f"plan-{number}", declared)
                assert await two.base(f"plan-{number}") == f"org/large plan-{number}"
                assert await two.base(f"large/plan-{number}") == f"org/large plan-{number}"
                assert await two.base(f"plan-{number}", model="org/large") == f"org/large plan-{number}"
            assert two.small.texts.asked == []  # no engine of another base reads it

    asyncio.run(main())


@pytest.mark.parametrize("naming", [{"name": "small/plan"}, {"name": "plan", "deployment": "small"}])
def test_an_adapter_is_refused_on_another_base_with_the_name_that_fits(tmp_path: Path, naming: dict[str, str]) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("plan", "org/large")
            refusal = await two.refusal(**naming)
            assert isinstance(refusal, AdapterIncompatible)
            assert "not compatible with model 'org/small'" in refusal.message
            assert "ask for `org/large/plan`" in refusal.message

    asyncio.run(main())


def test_an_adapter_without_a_base_goes_to_the_one_that_it_fits(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            for number, declared in enumerate((None, "", 7)):
                two.adapter(f"plan-{number}", declared, fits="large")
                assert await two.base(f"plan-{number}") == f"org/large plan-{number}"
                refusal = await two.refusal(f"small/plan-{number}")
                assert "another shape; it fits another base of this server" in refusal.message
                assert f"`org/large/plan-{number}`" in refusal.message

    asyncio.run(main())


def test_an_adapter_that_changes_between_two_questions_is_of_the_base_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("plan", None, fits="large")
            ask = two.models.bases._questions.refusals

            async def changed(*given: Any) -> Any:
                two.fits("plan", "small large")
                two.models.bases.forget(AdapterRef(SourceName.LOCAL, "plan"))
                return await ask(*given)

            monkeypatch.setattr(two.models.bases._questions, "refusals", changed)
            assert await two.base("small/plan") == "org/small plan"

    asyncio.run(main())


def test_an_adapter_of_no_served_base_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("stray", "elsewhere/huge", fits="large")
            refusal = await two.refusal("stray")
            assert "trained on `elsewhere/huge`" in refusal.message
            assert "ask for `org/large/stray`" in refusal.message
            assert await two.base("large/stray") == "org/large stray"
            two.adapter("both", None)
            assert "`org/small/both` or `org/large/both`" in (await two.refusal("both")).message
            assert [await two.base(f"{base}/both") for base in ("small", "large")] == [
                "org/small both",
                "org/large both",
            ]
            two.adapter("neither", "elsewhere/huge", fits="")
            refusal = await two.refusal("neither")
            assert "fits no base of this server: it serves `org/small` and `org/large`" in refusal.message
            two.small.texts.failures["rotten"] = two.large.texts.failures["rotten"] = AdapterCorrupt("its file is cut")
            two.adapter("rotten", None)
            two.small.texts.failures["rotten"] = AdapterCorrupt("its file is cut")
            assert isinstance(await two.refusal("rotten"), AdapterCorrupt)

    asyncio.run(main())


def test_a_folder_with_the_whole_name_comes_before_base_and_adapter(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("large/plan", "org/small")
            two.adapter("plan", "org/large")
            assert await two.base("large/plan") == "org/small large/plan"
            assert await two.base("org/large/plan") == "org/large plan"

    asyncio.run(main())


def test_a_changed_folder_goes_to_its_new_base(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("plan", "org/large")
            assert await two.base("plan") == "org/large plan"
            two.adapter("plan", "org/small")
            two.clock.advance(1.5)
            assert await two.base("plan") == "org/small plan"
            two.adapter("free", None, fits="large")
            assert await two.base("free") == "org/large free"
            two.fits("free", "small")
            [ref] = [ref for ref in two.large.texts.asked if ref.id == "free"]
            two.models.forget(ref)  # as after the refusal of its engine
            assert await two.base("free") == "org/small free"

    asyncio.run(main())


def test_a_remote_adapter_goes_to_the_base_that_its_report_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            declared = {"base": {"declared": "org/large"}}
            for engine, name in itertools.product((two.small, two.large), ("team/plan", "team/late")):
                info = AdapterInfo(id=name, source="hub", state=AdapterState.ON_DISK, report=declared)
                engine.adapters.known[AdapterRef(SourceName.HUB, name)] = info
            hub = AdapterFields(source="hub")
            assert await two.base("team/plan", fields=hub) == "org/large team/plan"
            two.fits("team/other", "large")
            assert await two.base("team/other", fields=hub) == "org/large team/other"
            await two.models.default.engine.close()
            assert await two.base("team/late", fields=hub) == "org/large team/late"
            assert isinstance(await two.refusal("team/unknown", fields=hub), Unavailable)  # it may fit both

    asyncio.run(main())


def test_adapters_of_two_bases_cannot_apply_together(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("plan", "org/large")
            two.adapter("tone", "org/small")
            two.adapter("style", "org/small")
            recipe = MergeRecipe(weights=(1.0, 1.0))
            merged = AdapterFields(merged_ids=("plan", "tone"), recipe=recipe, names_several=True)
            mixed = AdapterFields(mixed=(("plan", 1.0), ("tone", 1.0)), names_several=True)
            prefixed = AdapterFields(mixed=(("large/plan", 1.0), ("small/tone", 1.0)), names_several=True)
            for fields in (merged, mixed, prefixed):
                refusal = await two.refusal(None, fields=fields)
                assert isinstance(refusal, InvalidParameter)
                assert "adapters of several bases cannot apply together" in refusal.message
            own = AdapterFields(mixed=(("small/style", 1.0), ("tone", 1.0)), names_several=True)
            assert await two.base(None, fields=own) == "org/small style,tone"

    asyncio.run(main())


def test_a_path_serves_its_own_base_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            refusal = await two.refusal("large", deployment="small", field="model")
            assert isinstance(refusal, InvalidParameter)
            assert "use the path of `large`" in refusal.message
            assert await two.base("small", deployment="small") == "org/small"
            assert await two.base("", deployment="large") == "org/large"

    asyncio.run(main())


def test_a_full_base_leaves_the_places_of_the_other_free(tmp_path: Path) -> None:
    config = replace(Config(), server=replace(Config().server, max_concurrent_requests=2))

    async def main() -> None:
        async with started_bases(tmp_path, config) as ((small, large), started):
            app = create_app(config, started)
            path = "/v1/completions"
            full = {"model": "small", "prompt": ["HOLD", "HOLD!"], "stream": True, "max_tokens": 400}
            more = {"model": "small", "prompt": "SAY:a"}
            async with calling(app, path, full) as one, calling(app, path, full) as two:
                await asyncio.gather(one.chunk(), two.chunk())
                async with calling(app, path, more) as refused, calling(app, path, more | {"model": "large"}) as served:
                    assert b"overloaded" in await refused.rest()
                    assert b'"text":"a"' in await served.rest()
                    assert (refused.status, served.status) == (503, 200)
            assert (len(small.submitted), len(large.submitted)) == (2, 1)
            await app.admission.emptied()
            app.close()

    asyncio.run(main())


def test_the_death_of_one_engine_leaves_the_known_adapters_of_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_bases(tmp_path) as two:
            two.adapter("plan", None, fits="large")
            two.adapter("late", None, fits="large")
            assert await two.base("plan") == "org/large plan"
            await two.models.default.engine.close()
            for _ in range(2):
                two.clock.advance(1.5)
                assert await two.base("plan") == "org/large plan"
            assert isinstance(await two.refusal("late"), Unavailable)  # it may fit both

    asyncio.run(main())
