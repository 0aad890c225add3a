"""Runs in the environment of `predibase`: the server's address, a key, a folder with an adapter, a scratch folder.

With the word `inference` behind them it asks the deployment of a server that generates; the adapter is the triage demo.
"""

import json
import os
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

URL, KEY, ADAPTER, SCRATCH, *WORDS = sys.argv[1:]
os.environ["PREDIBASE_GATEWAY"] = URL
os.environ["HOME"] = SCRATCH  # where it looks for settings

from predibase import DeploymentConfig, Predibase, UpdateDeploymentConfig  # noqa: E402 - it reads the environment

FILES = ("adapter_config.json", "adapter_model.safetensors")
pb = Predibase(api_token=KEY)


def expect(text: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:  # its errors are of many kinds
        told = str(error)
    else:
        raise AssertionError(f"an error with {text!r} was expected")
    assert text in told, told


def check_deployments() -> None:
    [shared] = pb.deployments.list()
    assert (shared.type, shared.status, shared.current_replicas) == ("shared", "ready", 1)
    assert pb.deployments.get(shared.name).model == shared.model
    assert pb.deployments.list(type="dedicated") == []
    config = DeploymentConfig(base_model="mistral-7b-instruct", min_replicas=0, max_replicas=2, cooldown_time=600)
    made = pb.deployments.create("mine", config=config, description="ours", block=False)
    assert (made.status, made.type, made.description) == ("pending", "dedicated", "ours")
    assert (made.config.max_replicas, made.config.cooldown_time) == (2, 600)
    pb.deployments.update("mine", config=UpdateDeploymentConfig(max_replicas=3), block=False)
    changed = pb.deployments.get("mine")
    assert (changed.config.max_replicas, changed.config.cooldown_time) == (3, 600)
    assert [each.name for each in pb.deployments.list(type="dedicated")] == ["mine"]
    pb.deployments.delete("mine")
    expect("was not found", lambda: pb.deployments.get("mine"))
    recommended = pb.deployments.get_recommended_config("zephyr-7b-beta")
    assert recommended["baseModel"] == "Zephyr-7b-beta"
    logs = f"{SCRATCH}/logs.zip"
    pb.deployments.download_request_logs(shared.name, logs)
    assert zipfile.ZipFile(logs).namelist() == ["requests.jsonl"]
    expect("was not found", lambda: pb.deployments.download_request_logs("nothing", logs))


def check_repositories() -> None:
    made = pb.repos.create(name="triage", description="support tickets")
    expect("already", lambda: pb.repos.create(name="triage"))
    assert pb.repos.create(name="triage", exists_ok=True).uuid == made.uuid
    assert pb.repos.get("triage").description == "support tickets"
    assert [repo.name for repo in pb.repos.list()] == ["triage"]


def check_adapters() -> None:
    for number in (1, 2):
        made = pb.adapters.upload(ADAPTER, "triage")
        assert (made.repo, made.tag, made.archived) == ("triage", number, False)
        assert made.artifact_path
    got = pb.adapters.get("triage/2")
    assert (got.tag, got.base_model) == (2, made.base_model)
    pb.adapters.archive("triage/2")
    assert pb.adapters.get("triage/2").archived
    assert [version.tag for version in pb.repos.get("triage").versions] == [1]
    pb.adapters.unarchive("triage/2")
    assert not pb.adapters.get("triage/2").archived
    pb.adapters.download("triage/1", f"{SCRATCH}/1.zip")
    with zipfile.ZipFile(f"{SCRATCH}/1.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: (Path(ADAPTER) / name).read_bytes() for name in FILES
        }
    expect("no version `9`", lambda: pb.adapters.download("triage/9", f"{SCRATCH}/9.zip"))
    pb.adapters.delete("triage/1")
    expect("404", lambda: pb.adapters.get("triage/1"))
    pb.repos.delete("triage")
    expect("404", lambda: pb.repos.get("triage"))


def check_refusals() -> None:
    pb.repos.create(name="broken")
    broken = Path(SCRATCH) / "broken"
    broken.mkdir()
    for name in FILES:
        (broken / name).write_bytes((Path(ADAPTER) / name).read_bytes()[: 1 << 12])
    expect("cannot be read", lambda: pb.adapters.upload(str(broken), "broken"))
    expect("not part of this server", lambda: pb.datasets.get("x"))


def key_with(*scopes: str) -> str:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    asked = Request(f"{URL}/v1/account/keys", json.dumps({"scopes": scopes}).encode(), headers)
    with urlopen(asked) as reply:
        return str(json.load(reply)["key"])


def check_narrow_keys() -> None:
    infers = Predibase(api_token=key_with("infer"))
    [shared] = infers.deployments.list()
    assert infers.deployments.get(shared.name).status == "ready"
    expect("403", infers.repos.list)
    uploads = Predibase(api_token=key_with("upload"))
    uploads.repos.create(name="narrow")
    assert uploads.adapters.upload(ADAPTER, "narrow").tag == 1
    assert [repo.name for repo in uploads.repos.list() if repo.name == "narrow"] == ["narrow"]


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhere is my parcel?<|im_end|>\n<|im_start|>assistant\n"
)


def check_inference() -> None:
    """`serving_url_override` is the server's address; without it the SDK asks Predibase's own."""
    [shared] = pb.deployments.list()
    client = pb.deployments.client(shared, serving_url_override=URL)
    assert client.generate("Paris is", max_new_tokens=4).details.generated_tokens == 4
    pb.repos.create(name="triage")
    pb.adapters.upload(ADAPTER, "triage")
    for named in (
        {"adapter_id": "triage"},
        {"adapter_id": "triage/1"},
        {"adapter_id": "triage/1", "adapter_source": "pbase"},
        {"adapter_id": "support-triage", "adapter_source": "local"},
    ):
        assert client.generate(PROMPT, max_new_tokens=8, **named).generated_text == "delivery", named
    pieces = list(
        pb.deployments.client(shared.name, serving_url_override=URL).generate_stream(
            PROMPT, adapter_id="triage/1", max_new_tokens=8
        )
    )
    assert "".join(piece.token.text for piece in pieces if not piece.token.special) == "delivery"
    assert pieces[-1].generated_text == "delivery"


def check_failed_inference() -> None:
    [shared] = pb.deployments.list()
    bare = pb.deployments.client(shared, serving_url_override=URL, force_bare_client=True)
    for client in (bare, pb.deployments.client(shared, serving_url_override=URL)):
        expect("was not found", partial(client.generate, PROMPT, adapter_id="nothing/1"))
        expect("max_new_tokens", partial(client.generate, PROMPT, max_new_tokens=-1))
        expect("was not found", partial(next, client.generate_stream(PROMPT, adapter_id="nothing/1")))
    other = pb.deployments.client("nothing", serving_url_override=URL, force_bare_client=True)
    expect("was not found", lambda: other.generate("Paris is"))
    bare.headers = {"Authorization": "Bearer pb_wrong"}
    expect("key", lambda: bare.generate("Paris is"))
    uploads = Predibase(api_token=key_with("upload", "read"))
    refused = uploads.deployments.client(shared, serving_url_override=URL, force_bare_client=True)
    expect("scope `infer`", lambda: refused.generate("Paris is"))
    expect("must start with", lambda: pb.deployments.client(shared, serving_url_override="localhost"))


if __name__ == "__main__" and WORDS == ["inference"]:
    check_inference()
    check_failed_inference()
elif __name__ == "__main__":
    check_deployments()
    check_repositories()
    check_adapters()
    check_refusals()
    check_narrow_keys()
