"""Runs in the environment of `predibase`, with a file of facts as its argument."""

import asyncio
import json
import math
import os
import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.clients.scripts.cases import FACTS, case, raised, run_cases

URL, KEY, UPLOAD, SCRATCH = FACTS["url"], FACTS["key"], FACTS["upload"], FACTS["scratch"]
os.environ["PREDIBASE_GATEWAY"] = URL
os.environ["HOME"] = SCRATCH  # where it looks for settings

from predibase import DeploymentConfig, Predibase, PredibaseClient, UpdateDeploymentConfig  # noqa: E402 - it reads the environment
from predibase.pql.api import Session  # noqa: E402 - as above
from predibase.resource.llm.interface import LLMDeployment  # noqa: E402 - as above
from predibase.resources import openai as sdk_openai  # noqa: E402 - as above

PROMPT, ANSWER, PARIS = FACTS["prompt"], FACTS["answer"], "The capital of France is"
FILES = ("adapter_config.json", "adapter_model.safetensors")
pb = Predibase(api_token=KEY)
refused = partial(raised, Exception)
"""Its errors are of many kinds."""


def shared() -> Any:
    [found] = pb.deployments.list(type="shared")
    return found


def bare(of: Predibase = pb) -> Any:
    """`serving_url_override` is the server's address; without it the SDK asks Predibase's own."""
    return of.deployments.client(shared(), serving_url_override=URL, force_bare_client=True)


def allow_http() -> None:
    """Ask for inference at the server's address. The SDK writes https:// itself where it takes no such address."""
    sdk_openai.openai_compatible_endpoint = lambda _, ref: pb.deployments.openai_compatible_endpoint(ref, URL)
    LLMDeployment.deployment_url = property(lambda own: pb.deployments.build_serving_url(own.name, URL))
    Session._get_serving = lambda own, path, params: own._http().get(f"{URL}{path}", headers=own.get_headers())


def uploaded(repo: str) -> str:
    pb.repos.create(name=repo, exists_ok=True)
    return f"{repo}/{pb.adapters.upload(UPLOAD, repo).tag}"


# ── deployments ──────────────────────────────────────────────────────────────────────────────────────────────────


@case
def the_shared_deployment_is_ready() -> None:
    found = shared()
    assert (found.type, found.status, found.current_replicas) == ("shared", "ready", 1)
    assert pb.deployments.get(found.name).model == found.model
    for kind, names in (("serverless", [found.name]), ("dedicated", []), ("private", [])):
        assert [each.name for each in pb.deployments.list(type=kind)] == names, kind


@case
def a_deployment_is_made_changed_and_deleted() -> None:
    config = DeploymentConfig(base_model="mistral-7b-instruct", min_replicas=0, max_replicas=2, cooldown_time=600)
    made = pb.deployments.create("mine", config=config, description="ours", block=False)
    assert (made.status, made.type, made.description) == ("pending", "dedicated", "ours")
    assert (made.config.max_replicas, made.config.cooldown_time) == (2, 600)
    pb.deployments.update("mine", config=UpdateDeploymentConfig(max_replicas=3), block=False)
    changed = pb.deployments.get("mine")
    assert (changed.config.max_replicas, changed.config.cooldown_time) == (3, 600)
    assert [each.name for each in pb.deployments.list(type="dedicated")] == ["mine"]
    pb.deployments.update(changed, description="renamed", block=False)
    assert pb.deployments.get("mine").description == "renamed"
    pb.deployments.delete(changed)
    refused(lambda: pb.deployments.get("mine"), "was not found")


@case
def a_config_can_be_a_dictionary() -> None:
    config = {"base_model": "mistral-7b-instruct", "custom_args": {"--max-input-length": "1024"}, "min_replicas": 0}
    made = pb.deployments.create("older", config=config, block=False)
    assert made.config.base_model.lower() == "mistral-7b-instruct"
    pb.deployments.delete("older")


@case
def a_config_is_recommended() -> None:
    recommended = pb.deployments.get_recommended_config("zephyr-7b-beta", quantization="int8")
    assert (recommended["baseModel"], recommended["quantization"]) == ("Zephyr-7b-beta", "int8")


@case
def the_log_of_requests_is_a_zip() -> None:
    bare().generate(PARIS, max_new_tokens=1)
    name, logs = shared().name, f"{SCRATCH}/logs.zip"
    for span in ({}, {"from_": "2020-01-01T00:00:00Z"}, {"from_": "2020-01-01T00:00:00+00:00"}):
        pb.deployments.download_request_logs(name, logs, **span)
        assert zipfile.ZipFile(logs).namelist() == ["requests.jsonl"]
    refused(lambda: pb.deployments.download_request_logs("nothing", logs), "was not found")
    refused(lambda: pb.deployments.download_request_logs(name, logs, from_="yesterday"), "`from` must be a moment")


# ── repositories and adapters ────────────────────────────────────────────────────────────────────────────────────


@case
def repositories_are_made_listed_and_deleted() -> None:
    made = pb.repos.create(name="triage", description="support tickets")
    refused(lambda: pb.repos.create(name="triage"), "already")
    assert pb.repos.create(name="triage", exists_ok=True).uuid == made.uuid
    assert pb.repos.get("triage").description == pb.repos.get(made).description == "support tickets"
    assert [repo.name for repo in pb.repos.list()] == ["triage"]
    pb.repos.create(name="second")
    assert len(pb.repos.list(limit=1)) == 1
    for name in ("triage", "second"):
        pb.repos.delete(name)
    refused(lambda: pb.repos.get("triage"), "404")


@case
def adapters_are_uploaded_archived_downloaded_and_deleted() -> None:
    pb.repos.create(name="triage")
    for number in (1, 2):
        made = pb.adapters.upload(UPLOAD, "triage")
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
        loaded = {name: archive.read(name) for name in archive.namelist()}
    assert loaded == {name: (Path(UPLOAD) / name).read_bytes() for name in FILES}
    refused(lambda: pb.adapters.download("triage/9", f"{SCRATCH}/9.zip"), "no version `9`")
    pb.adapters.delete("triage/1")
    refused(lambda: pb.adapters.get("triage/1"), "404")
    pb.repos.delete("triage")


@case
def what_is_no_adapter_is_refused_with_the_reason() -> None:
    pb.repos.create(name="broken")
    cut, pickled = Path(SCRATCH) / "cut", Path(SCRATCH) / "pickled"
    for folder in (cut, pickled):
        folder.mkdir()
        shutil.copy(Path(UPLOAD) / FILES[0], folder)
    (cut / FILES[1]).write_bytes((Path(UPLOAD) / FILES[1]).read_bytes()[: 1 << 12])
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    both = shutil.copytree(pickled, Path(SCRATCH) / "both")
    shutil.copy(Path(UPLOAD) / FILES[1], both)
    refused(lambda: pb.adapters.upload(str(cut), "broken"), "cannot be read")
    refused(lambda: pb.adapters.upload(str(pickled), "broken"), "has no safetensors weights")
    assert pb.adapters.upload(str(both), "broken").tag == 1, "the pickled copy of the weights is left out"
    refused(lambda: pb.adapters.upload(UPLOAD, "no-such-repository"), "404")
    pb.repos.delete("broken")


@case
def what_is_no_part_of_this_server_says_so() -> None:
    for call in (
        lambda: pb.datasets.get("x"),
        lambda: pb.finetuning.jobs.get("x"),
        lambda: pb.gateways.list(),
        lambda: pb.secrets.get("x"),
    ):
        refused(call, "not part of this server")


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def key_with(*scopes: str) -> str:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    asked = Request(f"{URL}/v1/account/keys", json.dumps({"scopes": scopes}).encode(), headers)
    with urlopen(asked) as reply:
        return str(json.load(reply)["key"])


@case
def a_key_may_do_what_its_scopes_say() -> None:
    infers = Predibase(api_token=key_with("infer"))
    [found] = infers.deployments.list()
    assert infers.deployments.get(found.name).status == "ready"
    assert bare(infers).generate(PARIS, max_new_tokens=1).generated_text
    refused(infers.repos.list, "403")
    uploads = Predibase(api_token=key_with("upload", "read"))
    uploads.repos.create(name="narrow")
    assert uploads.adapters.upload(UPLOAD, "narrow").tag == 1
    refused(lambda: bare(uploads).generate(PARIS), "scope `infer`")
    uploads.repos.delete("narrow")
    refused(lambda: Predibase(api_token="pb_wrong"), "401")


# ── inference ────────────────────────────────────────────────────────────────────────────────────────────────────


@case
def the_deployment_serves_uploaded_and_local_adapters() -> None:
    adapter, client = uploaded("served"), pb.deployments.client(shared(), serving_url_override=URL)
    assert client.generate(PARIS, max_new_tokens=4).details.generated_tokens == 4
    for named in (
        {"adapter_id": "served"},
        {"adapter_id": adapter},
        {"adapter_id": adapter, "adapter_source": "pbase"},
        {"adapter_id": FACTS["adapter"], "adapter_source": "local"},
    ):
        assert client.generate(PROMPT, max_new_tokens=8, **named).generated_text == ANSWER, named
    pb.adapters.archive(adapter)
    refused(partial(bare().generate, PROMPT, adapter_id="served"), "was not found")
    pb.repos.delete("served")


@case
def streams_end_with_the_whole_text() -> None:
    wrapped = pb.deployments.client(shared().name, serving_url_override=URL)
    for client in (bare(), wrapped):
        pieces = list(client.generate_stream(PROMPT, adapter_id=FACTS["adapter"], max_new_tokens=8))
        assert "".join(piece.token.text for piece in pieces if not piece.token.special) == ANSWER
        assert pieces[-1].generated_text == ANSWER


@case
async def the_async_client_does_the_same() -> None:
    client = pb.deployments.async_client(shared(), serving_url=URL)
    replies = await asyncio.gather(
        *(client.generate(PROMPT, adapter_id=FACTS["adapter"], max_new_tokens=8) for _ in range(4))
    )
    assert {reply.generated_text for reply in replies} == {ANSWER}
    pieces = [piece async for piece in client.generate_stream(PROMPT, adapter_id=FACTS["adapter"], max_new_tokens=8)]
    assert pieces[-1].generated_text == ANSWER


@case
async def texts_are_embedded() -> None:
    allow_http()
    embed = partial(pb.embeddings.create, model=shared().name, input=PARIS)
    reply = embed()
    [whole] = [entry.embedding for entry in reply.data]
    assert abs(math.hypot(*whole) - 1) < 1e-5
    assert reply.usage.prompt_tokens == 5
    assert embed(encoding_format="float").data[0].embedding == whole
    many = embed(input=["A parcel is late.", PARIS], hugging_face_api_key="unused").data
    assert [entry.index for entry in many] == [0, 1]
    assert many[1].embedding == whole != many[0].embedding
    adapted = embed(adapter_id=FACTS["adapter"])
    assert adapted.model == FACTS["adapter"]
    assert adapted.data[0].embedding != whole
    kept = embed(dimensions=16).data[0].embedding
    assert all(abs(value - given / math.hypot(*whole[:16])) < 1e-6 for value, given in zip(kept, whole, strict=False))
    assert len(kept) == 16
    native = await pb.deployments.async_client(shared(), serving_url=URL).embed(PARIS)
    assert all(abs(value - given) < 1e-6 for value, given in zip(native.embeddings, whole, strict=True))
    refused(lambda: embed(adapter_id="nothing"), "does not exist")


@case
def chats_and_texts_have_a_short_form() -> None:
    """`pb.chat` and `pb.completion` name the deployment as the model, and the adapter beside it."""
    allow_http()
    asked: Any = {"model": shared().name, "adapter_id": FACTS["adapter"], "max_tokens": 8, "temperature": 0}
    chat = pb.chat.completion.create(messages=[{"role": "user", "content": FACTS["question"]}], **asked)
    assert chat.choices[0].message.content == ANSWER
    assert pb.completion.create(prompt=PROMPT, **asked).choices[0].text == ANSWER
    chunks = pb.completion.create(prompt=PROMPT, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == ANSWER
    asked["model"] = "nothing"
    refused(lambda: pb.completion.create(prompt=PARIS, **asked), "was not found")


@case
def openai_is_served_below_the_deployment() -> None:
    from openai import NotFoundError, OpenAI

    client = OpenAI(base_url=pb.deployments.openai_compatible_endpoint(shared(), serving_url=URL), api_key=KEY)
    asked: Any = [{"role": "user", "content": FACTS["question"]}]
    chat = client.chat.completions.create(model=FACTS["adapter"], messages=asked, max_tokens=8, temperature=0)
    assert chat.choices[0].message.content == ANSWER
    text = client.completions.create(
        model="", prompt=PARIS, max_tokens=2, temperature=0, extra_body={"api_token": None}
    )
    assert text.usage is not None
    assert text.usage.completion_tokens == 2
    nothing = OpenAI(base_url=pb.deployments.openai_compatible_endpoint("nothing", serving_url=URL), api_key=KEY)
    error = raised(NotFoundError, lambda: nothing.completions.create(model="", prompt=PARIS), "was not found")
    assert error.code == "deployment_not_found"


@case
def failures_of_inference_are_told_by_both_clients() -> None:
    for client in (bare(), pb.deployments.client(shared(), serving_url_override=URL)):
        refused(partial(client.generate, PROMPT, adapter_id="nothing/1"), "was not found")
        refused(partial(client.generate, PROMPT, max_new_tokens=-1), "max_new_tokens")
        refused(partial(next, client.generate_stream(PROMPT, adapter_id="nothing/1")), "was not found")
        refused(partial(client.classify, "x"), "classification head")
        found = client.classify(["x", "y"], adapter_id=FACTS["classifier"])
        assert [(each.index, each.num_classes) for each in found.data] == [(0, 2), (1, 2)]
        assert all(each.label in ("bad", "good") and abs(sum(each.probs) - 1) < 1e-6 for each in found.data)
    other = pb.deployments.client("nothing", serving_url_override=URL, force_bare_client=True)
    refused(lambda: other.generate(PARIS), "was not found")
    stranger = bare()
    stranger.headers = {"Authorization": "Bearer pb_wrong"}
    refused(lambda: stranger.generate(PARIS), "key")
    refused(lambda: pb.deployments.client(shared(), serving_url_override="localhost"), "must start with")


@case
def metrics_are_for_operators() -> None:
    refused(lambda: bare().metrics(format="json"), "scope `admin`")
    client = bare(Predibase(api_token=FACTS["operator"]))
    assert "lorax_request_count" in client.metrics()
    assert client.metrics(format="json")["lorax_request_count"]["data"]


# ── the older client ─────────────────────────────────────────────────────────────────────────────────────────────


@case
def the_older_client_reads_deployments() -> None:
    older = PredibaseClient(gateway=URL, token=KEY)
    [found] = older.list_llm_deployments(active_only=True, print_as_table=False)
    assert found["name"] == shared().name
    assert found["modelName"] in {each["modelName"] for each in older.get_supported_llms()}
    deployment = older.LLM(f"pb://deployments/{found['name']}")
    assert deployment.is_scaled()
    assert deployment.get_events(detailed=True)["deploymentStatus"] == "ready"
    assert deployment.data.is_shared
    refused(lambda: older.LLM("pb://deployments/nothing"), "404")


@case
def the_older_client_prompts_a_deployment() -> None:
    """A deployment has no template of its own, so that a prompt of one field is what the model reads."""
    allow_http()
    older = PredibaseClient(gateway=URL, token=KEY)
    deployment = older.LLM(f"pb://deployments/{shared().name}")
    assert deployment.is_ready()
    template = older.prompt_template('Answer $question as {"city": …}:').render()
    prompt = template.format(question=PARIS)
    assert prompt == f'Answer {PARIS} as {{"city": …}}:'
    greedy: Any = {"max_new_tokens": 6, "temperature": 1e-6}
    expected = bare().generate(prompt, max_new_tokens=6).generated_text
    for data in (prompt, {"text": prompt}):
        reply = deployment.prompt(data, **greedy)
        assert (reply.prompt, reply.response, reply.model_name) == (prompt, expected, shared().name)
    assert deployment.prompt(prompt, bypass_system_prompt=True, **greedy).response == expected
    replies = deployment.prompt_batch([prompt, {"text": PARIS}], **greedy)
    texts = {PARIS: bare().generate(PARIS, max_new_tokens=6).generated_text, prompt: expected}
    assert {reply.prompt: reply.response for reply in replies} == texts
    refused(lambda: deployment.prompt({"a": "1", "b": "2"}), "no default_prompt_template exists")
    tuned = {"adapter_id": FACTS["adapter"], "max_new_tokens": 8}
    assert deployment.generate(PROMPT, options={**tuned, "details": True}).generated_tokens > 1
    assert [reply.response for reply in deployment.generate_batch([PROMPT], options={**tuned})] == [ANSWER]
    assert list(deployment.generate_stream(PROMPT, options=tuned))[-1].generated_text == ANSWER


if __name__ == "__main__":
    run_cases("predibase")
