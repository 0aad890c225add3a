"""The disk tier's quota, for every order of loads, evictions, pins, names, other servers and restarts."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manylora.adapters.jobs import Ingested, IngestJob
from manylora.adapters.packing.image import ImageFacts, lay_out, read_image, write_image
from manylora.adapters.tiers.disk import MAX_NAMES_OF_IMAGE, DiskTier
from manylora.adapters.tiers.image_folder import job_file
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY, local
from tests.adapters.server_store import bytes_in

TABLE, _ = lay_out(TINY, {}, "bfloat16")
HEAD_BYTES = ImageFacts(Digest("0" * 64), "bfloat16", TINY.num_layers, 0, 0).file_bytes
CONTENTS = st.integers(0, 9)
BUDGETS = st.sampled_from([3 * HEAD_BYTES, 8 * HEAD_BYTES, 40 * HEAD_BYTES])


def body_of(content: int) -> memoryview:
    return memoryview(bytes([content]) * (64 * content**2))


def digest_of(content: int) -> Digest:
    return Digest(f"{content:064x}")


class DiskMachine(RuleBasedStateMachine):
    """Two tiers below one root; of the first, every byte is looked at after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.budget_bytes = 8 * HEAD_BYTES
        self.disk = self.open(self.budget_bytes)
        self.other = self.open(1 << 20)
        self.number = 0
        self.jobs: dict[int, tuple[int, str]] = {}  # what each will become, and under which name
        self.pins: list[Digest] = []

    def open(self, budget_bytes: int) -> DiskTier:
        return DiskTier(self.root, budget_bytes, dtype="bfloat16", base_fingerprint=TINY.fingerprint)

    @rule(content=CONTENTS, name=st.integers(0, 30), spare_bytes=st.integers(0, 2_000))
    def begin(self, content: int, name: int, spare_bytes: int) -> None:
        self.number += 1
        bound_bytes = HEAD_BYTES + len(body_of(content)) + spare_bytes
        if bound_bytes <= self.budget_bytes and self.disk.reserve(self.number, bound_bytes):
            self.jobs[self.number] = (content, self.disk.name_key(local(f"a{name}"), str(content)))

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99))
    def write(self, index: int) -> None:
        """What the ingest process does before it answers."""
        number = sorted(self.jobs)[index % len(self.jobs)]
        self.write_image(self.disk, number, self.jobs[number][0])

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99), ends_well=st.booleans())
    def end(self, index: int, ends_well: bool) -> None:
        number = sorted(self.jobs)[index % len(self.jobs)]
        content, name_key = self.jobs.pop(number)
        if not ends_well:
            self.disk.cancel(number)
            return
        facts = self.write_image(self.disk, number, content)
        self.disk.settle(IngestJob(number, local("a"), "", name_key), Ingested(number, facts, 0, (), {}))
        assert self.disk.digest_of(name_key) in (digest_of(content), None)

    @rule(content=CONTENTS, name=st.integers(0, 30))
    def another_server_loads(self, content: int, name: int) -> None:
        name_key = self.other.name_key(local(f"a{name}"), str(content))
        assert self.other.reserve(1, HEAD_BYTES + len(body_of(content)))
        facts = self.write_image(self.other, 1, content)
        self.other.settle(IngestJob(1, local("a"), "", name_key), Ingested(1, facts, 0, (), {}))

    @rule(content=CONTENTS, name=st.integers(0, 30))
    def look_for(self, content: int, name: int) -> None:
        found = self.disk.digest_of(self.disk.name_key(local(f"a{name}"), str(content)))
        assert found in (digest_of(content), None)

    @rule(content=CONTENTS)
    def pin(self, content: int) -> None:
        if self.disk.facts(digest_of(content)) is not None:
            self.disk.pin(digest_of(content))
            self.pins.append(digest_of(content))

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.disk.unpin(self.pins.pop())

    @rule(content=CONTENTS)
    def remove(self, content: int) -> None:
        if digest_of(content) not in self.pins:
            self.disk.remove(digest_of(content))

    @rule(budget_bytes=BUDGETS)
    def restart(self, budget_bytes: int) -> None:
        self.disk.close()
        self.jobs.clear()
        self.pins.clear()
        self.budget_bytes = budget_bytes
        self.disk = self.open(budget_bytes)
        assert self.disk.used_bytes == bytes_in(self.disk.folder)

    @invariant()
    def the_quota_is_never_passed(self) -> None:
        assert bytes_in(self.disk.folder) <= self.disk.used_bytes <= self.budget_bytes

    @invariant()
    def without_loads_every_byte_is_counted(self) -> None:
        if not self.jobs:
            assert bytes_in(self.disk.folder) == self.disk.used_bytes

    @invariant()
    def what_is_pinned_is_there_and_whole(self) -> None:
        for digest in self.pins:
            assert read_image(self.disk.path(digest)).digest == digest

    @invariant()
    def files_and_facts_agree(self) -> None:
        images = {path.name for path in self.disk.folder.glob("*.img")}
        assert len(images) == self.disk.num_images
        names = [path.read_text() for path in self.disk.folder.glob("*.name")]
        assert set(names) <= images
        assert all(names.count(name) <= MAX_NAMES_OF_IMAGE for name in images)

    def write_image(self, disk: DiskTier, number: int, content: int) -> ImageFacts:
        return write_image(
            disk.folder / job_file(number),
            digest=digest_of(content),
            dtype="bfloat16",
            table=TABLE,
            body=body_of(content),
            may_create=False,
        )

    def teardown(self) -> None:
        self.disk.close()
        self.other.close()
        shutil.rmtree(self.root)


TestDiskLaws = DiskMachine.TestCase
TestDiskLaws.settings = settings(stateful_step_count=40)
