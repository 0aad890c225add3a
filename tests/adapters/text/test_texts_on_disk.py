"""What adapters say of text, in the disk tier: beside the image of their weights, under a digest of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_state import NO_WORDS, AdapterAction, AdapterWords
from manylora.adapters.tiers.disk import MAX_NAMES_OF_IMAGE
from manylora.models.text.adapter_text import AdapterText
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, House
from tests.models.tiny_tokenizers import save_byte_level

MANY = replace(CONFIG, disk_bytes=16 << 20)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_byte_level(tmp_path_factory.mktemp("base")))


@pytest.fixture
def house(tmp_path: Path, base: str) -> Iterator[House]:
    house = House(tmp_path, MANY, base_dir=base)
    yield house
    house.store.close()


def save(house: House, name: str, template: str | None = None) -> None:
    folder = save_adapter(house.root / name)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def words(house: House, name: str, turns: int = 6) -> AdapterWords:
    for _ in range(turns):
        house.turn(name)
        if (found := house.store.text(local(name))) is not None:
            return found
    raise AssertionError(house.store.failure(local(name)))


def template_of(found: AdapterWords) -> str:
    return AdapterText.from_bytes(Path(found.path).read_bytes()).templates["default"]


def test_equal_weights_share_an_image_whatever_they_say(house: House) -> None:
    for name, template in (("plain", None), ("one", "1"), ("two", "2"), ("same", "1")):
        save(house, name, template)
    places = {name: house.placed(name) for name in ("plain", "one", "two", "same")}
    assert len({place.digest for place in places.values() if place is not None}) == 1
    assert house.disk.num_images == 1
    assert words(house, "plain") == NO_WORDS
    assert [template_of(words(house, name)) for name in ("one", "two", "same")] == ["1", "2", "1"]
    assert words(house, "one").digest == words(house, "same").digest != words(house, "two").digest


def test_a_changed_text_is_another_version_of_the_same_weights(house: House) -> None:
    save(house, "one", "1")
    before = house.placed("one")
    first = words(house, "one").digest
    house.clock.advance(2.0)
    (house.root / "one" / "chat_template.jinja").write_text("other")
    assert template_of(words(house, "one")) == "other"
    after = house.placed("one")
    assert before is not None
    assert after is not None
    assert (after.digest, house.store.text_digest(local("one")) == first) == (before.digest, False)


def test_texts_are_there_after_a_restart_and_for_another_process(tmp_path: Path, base: str) -> None:
    first = House(tmp_path, MANY, base_dir=base)
    save(first, "one", "1")
    save(first, "plain")
    told = words(first, "one"), words(first, "plain")
    beside = House(tmp_path, MANY, base_dir=base)  # holds a folder of its own
    assert beside.disk.folder != first.disk.folder
    assert words(beside, "one", turns=1).digest == told[0].digest  # no load was needed
    assert template_of(words(beside, "one")) == "1"
    beside.store.close()
    first.store.close()
    again = House(tmp_path, MANY, base_dir=base)
    assert (words(again, "one", turns=1), words(again, "plain", turns=1)) == told
    again.store.close()
    Path(told[0].path).unlink()
    without = House(tmp_path, MANY, base_dir=base)
    assert template_of(words(without, "one")) == "1"  # ingested again
    without.store.close()


def test_a_text_whose_name_was_crowded_out_is_read_again(house: House) -> None:
    for number in range(MAX_NAMES_OF_IMAGE + 1):
        save(house, f"a{number}", str(number))
        assert template_of(words(house, f"a{number}")) == str(number)
    assert template_of(words(house, "a0")) == "0"


def test_a_deleted_adapter_leaves_no_text(house: House) -> None:
    save(house, "one", "1")
    found = words(house, "one")
    assert Path(found.path).exists()
    house.store.manage(AdapterAction.DELETE, local("one"))
    house.turn()
    assert not Path(found.path).exists()
    assert not list(house.disk.folder.glob("*.text*"))


def test_the_budget_counts_every_byte_of_texts(house: House) -> None:
    save(house, "plain")
    words(house, "plain")
    before = house.disk.used_bytes
    save(house, "one", "x" * 10_000)
    found = words(house, "one")
    small = [file for kind in ("name", "report") for file in house.disk.folder.glob(f"*.{kind}")]
    name_bytes = sum(file.stat().st_size for file in small)
    assert house.disk.used_bytes >= before + Path(found.path).stat().st_size
    assert house.disk.used_bytes <= before + Path(found.path).stat().st_size + name_bytes


def test_text_files_that_differ_from_the_bases_tokenizer_are_refused(house: House) -> None:
    save(house, "other")
    (house.root / "other" / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    assert "the model in its tokenizer.json differs" in house.error("other").message
