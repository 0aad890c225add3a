"""The life of a tracked adapter: only drawn transitions happen, and each state means what it says."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant

from manylora.adapter_ref import AdapterRef, SourceName, merged_ref
from manylora.adapter_state import AdapterState
from manylora.adapters.sources.source import Located
from manylora.adapters.store import tracked as module
from manylora.adapters.store.tracked import TRANSITIONS, TrackedAdapter, VersionTiers
from manylora.errors import AdapterCorrupt
from manylora.ids import Digest
from manylora.merging import MergeRecipe, MergeStrategy
from tests.adapters.store.test_laws import StoreMachine, TwoMemoryStoreMachine
from tests.support.paths import ROOT

PACKAGE = ROOT / "src" / "manylora"
TIERS = {AdapterState.ON_DISK, AdapterState.IN_HOST, AdapterState.ON_DEVICE}
SEEN: set[tuple[str, AdapterState, AdapterState]] = set()


def _drawn(words: str) -> frozenset[AdapterState]:
    return frozenset(AdapterState) if words == "any" else frozenset(map(AdapterState, words.split()))


def test_the_table_is_the_one_that_is_drawn() -> None:
    lines = re.findall(r"^    (\w+) {2,}([a-z_ ]+?) +-> ([a-z_ ]+)$", module.__doc__ or "", re.MULTILINE)
    assert {name: (_drawn(before), _drawn(after)) for name, before, after in lines} == dict(TRANSITIONS)


@pytest.fixture(autouse=True)
def record(monkeypatch: pytest.MonkeyPatch) -> None:
    enter = TrackedAdapter._enter

    def recording(adapter: TrackedAdapter, transition: str) -> None:
        before = adapter.state
        enter(adapter, transition)
        if adapter.state is not before:
            SEEN.add((transition, before, adapter.state))

    monkeypatch.setattr(TrackedAdapter, "_enter", recording)


def check_state(adapter: TrackedAdapter, tier: AdapterState) -> None:
    """Compare the stored state of an adapter with the facts it stands for; `tier` is the highest that has its version.

    All is written out again here, from the facts of the tiers: nothing comes from `tracked.py`.
    """
    state, is_loading = adapter.state, adapter.job is not None
    assert adapter.tier is tier
    assert (state is AdapterState.FAILED) == (adapter.failure is not None)
    assert adapter.digest is None or adapter.located is not None
    match state:
        case AdapterState.ABSENT:
            assert not is_loading
            assert tier is AdapterState.ABSENT
        case AdapterState.FETCHING:
            is_asked = adapter.search is not None or adapter.ref.merge is not None
            assert is_loading or (adapter.located is None and is_asked)
        case AdapterState.ON_DISK | AdapterState.IN_HOST | AdapterState.ON_DEVICE:
            assert not is_loading
            assert tier is state
    assert adapter.is_wanted or not (adapter.is_kept_wanted or adapter.lacks_room)
    assert adapter.held is None or adapter.is_pinned
    assert not (adapter.is_deleted and adapter.located is not None)


class _Watched(StoreMachine):
    """Checks every tracked adapter after every rule."""

    @invariant()
    def each_state_means_what_it_says(self) -> None:
        for adapter in self.store._tracked:
            check_state(adapter, self._tier(adapter.digest))
            if adapter.digest is not None:
                assert adapter in self.store._tracked.of_version(adapter.digest)

    def _tier(self, digest: Digest | None) -> AdapterState:
        if digest is None:
            return AdapterState.ABSENT
        if digest in self.bank and digest not in self._unpolled():
            return AdapterState.ON_DEVICE
        if self.device.host is not None and digest in self.device.host:
            return AdapterState.IN_HOST
        return AdapterState.ABSENT if self.disk.facts(digest) is None else AdapterState.ON_DISK

    def _unpolled(self) -> list[Digest]:
        return [] if self.placements is None else self.placements._ended

    @invariant()
    def only_drawn_transitions_happen(self) -> None:
        for transition, before, after in SEEN:
            assert before in TRANSITIONS[transition][0]
            assert after in TRANSITIONS[transition][1]


class _WatchedTwo(_Watched, TwoMemoryStoreMachine):
    pass


TestLife = _Watched.TestCase
TestLifeInTwoMemories = _WatchedTwo.TestCase
TestLife.settings = TestLifeInTwoMemories.settings = settings(stateful_step_count=50)


REF = AdapterRef(SourceName.LOCAL, "a")
LOCATED = Located("1", 10)
DIGEST = Digest("1" * 64)


def shown(adapter: TrackedAdapter) -> AdapterState:
    return adapter.state


def test_a_transition_that_is_not_drawn_is_refused() -> None:
    tiers = {DIGEST: AdapterState.ON_DISK}
    versions = VersionTiers(lambda digest: tiers[digest])
    adapter = TrackedAdapter(REF, versions)
    adapter.located_as(LOCATED, DIGEST, "", None)
    assert adapter.state is AdapterState.ON_DISK
    with pytest.raises(AssertionError, match="load_begun leads from on_disk to fetching"):
        adapter.load_begun(1)


def test_a_failure_hides_the_tier_and_its_end_shows_it_again() -> None:
    tiers = {DIGEST: AdapterState.ON_DISK}
    versions = VersionTiers(lambda digest: tiers[digest])
    adapter = TrackedAdapter(REF, versions)
    adapter.located_as(LOCATED, DIGEST, "", None)
    adapter.failed(AdapterCorrupt("x"), 1.0, 0)
    tiers[DIGEST] = AdapterState.ON_DEVICE
    versions.moved(DIGEST)
    assert adapter.state is AdapterState.FAILED
    adapter.retried()
    assert shown(adapter) is AdapterState.ON_DEVICE


def test_an_image_that_goes_takes_every_adapter_of_its_content_along() -> None:
    tiers = {DIGEST: AdapterState.ON_DEVICE}
    versions = VersionTiers(lambda digest: tiers[digest])
    both = [TrackedAdapter(AdapterRef(SourceName.LOCAL, name), versions) for name in "ab"]
    for adapter in both:
        adapter.located_as(LOCATED, DIGEST, "", None)
    tiers[DIGEST] = AdapterState.ABSENT
    versions.moved(DIGEST)
    assert [adapter.state for adapter in both] == [AdapterState.ABSENT] * 2
    for adapter in both:
        adapter.version_forgotten()
    assert versions.adapters == {}


def test_a_merge_is_being_fetched_until_its_members_are_known() -> None:
    merge = merged_ref([REF, AdapterRef(SourceName.LOCAL, "b")], MergeRecipe((0.5, 0.5), MergeStrategy.LINEAR))
    adapter = TrackedAdapter(merge, VersionTiers(lambda digest: AdapterState.ABSENT))
    assert adapter.state is AdapterState.FETCHING
    adapter.located_as(LOCATED, None, "", None)
    assert shown(adapter) is AdapterState.ABSENT


# ── one writer ───────────────────────────────────────────────────────────────────────────────────────────────────


def assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Every attribute of something else than `self` that a module assigns, deletes or changes by a method."""
    changing = {"add", "append", "clear", "discard", "extend", "pop", "remove", "setdefault", "update"}
    for node in ast.walk(tree):
        found: Any = None
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            found = node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
            found = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found = node.value
        if isinstance(found, ast.Attribute) and not (isinstance(found.value, ast.Name) and found.value.id == "self"):
            yield found


def test_no_other_module_assigns_an_attribute_of_a_tracked_adapter() -> None:
    slots = set(TrackedAdapter.__slots__)
    writers = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for folder in ("adapters", "engine", "wiring")
        for path in (PACKAGE / folder).rglob("*.py")
        if path.name != "tracked.py" and "TrackedAdapter" in path.read_text(encoding="utf-8")
        for node in assigned(ast.parse(path.read_text(encoding="utf-8")))
        if node.attr in slots
    }
    assert writers == set()


def test_the_search_for_writers_finds_one() -> None:
    code = "adapter.state = 1\nadapter.stage_ms['read'] = 2\nother.draining.add(3)\nself.digest = 4\ndel adapter.job"
    assert sorted(node.attr for node in assigned(ast.parse(code))) == ["draining", "job", "stage_ms", "state"]
