"""Runs `curl` on each route, with a file of facts as its argument: content types, slashes, framing byte for byte."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.clients.scripts.cases import FACTS, case, run_cases

KEY = ("-H", f"Authorization: Bearer {FACTS['key']}")
JSON = "application/json"
HERE = f"/{FACTS['tenant']}/deployments/v2/llms/{FACTS['base']}"
ASKED = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 3, "details": True}}
COMPLETION = {"model": "", "prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}


class Reply(NamedTuple):
    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:  # JSON values of several types
        return json.loads(self.body)


def curl(path: str, body: object = None, *flags: str, kind: str | None = JSON) -> Reply:
    """Return the reply to a request. A body of bytes goes out as it is; `kind` is its content type, None for none."""
    words = [
        "curl",
        "-s",
        "-g",
        "--path-as-is",
        "--max-time",
        "60",
        "-w",
        "\n%{http_code} %{content_type}",
        *KEY,
        *flags,
    ]
    with tempfile.NamedTemporaryFile() as file:
        if body is not None:
            Path(file.name).write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
            words += [
                "--data-binary",
                f"@{file.name}",
                "-H",
                "Content-Type:" if kind is None else f"Content-Type: {kind}",
            ]
        done = subprocess.run([*words, f"{FACTS['url']}{path}"], capture_output=True, check=True)
    text, _, told = done.stdout.rpartition(b"\n")
    status, _, found = told.decode().partition(" ")
    return Reply(int(status), found, text)


@case
def every_route_answers_below_the_root_and_below_the_deployment() -> None:
    for prefix in ("", HERE):
        for path in ("/health", "/ping", "/startup", "/info", "/v1/models", "/openapi.json", "/api-doc/openapi.json"):
            found = curl(prefix + path)
            assert (found.status, found.kind) == (200, JSON), (prefix, path, found)
        for path, body in (
            ("/", ASKED),
            ("/invocations", ASKED),
            ("/generate", ASKED),
            ("/tokenize", {"inputs": "Hello"}),
            ("/v1/completions", COMPLETION),
        ):
            found = curl(prefix + path, body)
            assert (found.status, found.kind) == (200, JSON), (prefix, path, found)
    assert isinstance(curl(HERE, ASKED).json, list)
    assert isinstance(curl("/generate", ASKED).json, dict)


@case
def every_refusal_is_json_in_the_form_of_its_route() -> None:
    big = json.dumps({"inputs": "x" * 3_000_000}).encode()
    for status, code, reply in (
        (400, "invalid_json", curl("/generate", b"{")),
        (415, "unsupported_media_type", curl("/generate", ASKED, kind=None)),
        (415, "unsupported_media_type", curl("/generate", ASKED, kind="text/plain")),
        (413, "body_too_large", curl("/generate", big)),
        (405, "method_not_allowed", curl("/generate")),
        (405, "method_not_allowed", curl("/health", None, "-X", "DELETE")),
        (404, "unknown_route", curl("/nothing")),
        (404, "deployment_not_found", curl(HERE + "x/generate", ASKED)),
        (403, "tenant_mismatch", curl(f"/stranger{HERE.removeprefix('/' + FACTS['tenant'])}/generate", ASKED)),
        (422, "invalid_parameter", curl("/generate", {"inputs": ""})),
        (501, "not_part_of_this_server", curl("/v2/finetuning/jobs")),
        (400, "invalid_json", curl("/v2/repos", b"{")),
    ):
        assert (reply.status, reply.kind, reply.json["code"]) == (status, JSON, code), reply
        assert isinstance(reply.json["error"], str)
    for status, code, reply in (
        (400, "invalid_json", curl("/v1/completions", b"{")),
        (404, "unknown_route", curl("/v1/nothing")),
        (404, "model_not_found", curl("/v1/models/no%2Fsuch")),
        (404, "deployment_not_found", curl(HERE + "x/v1/completions", COMPLETION)),
        (415, "unsupported_media_type", curl(HERE + "/v1/completions", COMPLETION, kind="text/plain")),
    ):
        assert (reply.status, reply.kind, reply.json["error"]["code"]) == (status, JSON, code), reply
        assert isinstance(reply.json["error"]["message"], str)


@case
def slashes_and_escapes_make_no_difference() -> None:
    expected = curl("/generate", ASKED).json["generated_text"]
    for path in ("//generate", "/generate/", "/gener%61te", f"/{HERE}//generate//", f"{HERE}%2Fgenerate"):
        found = curl(path, ASKED)
        assert (found.status, found.json["generated_text"]) == (200, expected), path
    assert curl(f"/v1/models/{FACTS['private'].replace('/', '%2F')}").status == 404


@case
def a_native_stream_is_framed_byte_for_byte() -> None:
    found = curl("/generate_stream", ASKED, "-N")
    assert (found.status, found.kind) == (200, "text/event-stream")
    *events, end = found.body.split(b"\n\n")
    assert (len(events), end, b"\r" in found.body) == (3, b"", False)
    assert all(event.startswith(b"data: {") and b"\n" not in event for event in events)
    assert list(json.loads(events[0][6:])) == ["token", "generated_text", "details"]
    last = json.loads(events[-1][6:])
    assert last["generated_text"] == curl("/generate", ASKED).json["generated_text"]
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


@case
def separators_of_lines_stay_escaped() -> None:
    body = {"inputs": "one\u2028two\u0085", "parameters": {"max_new_tokens": 1, "return_full_text": True}}
    found = curl("/generate_stream", body, "-N").body
    assert b"one\\u2028two\\u0085" in found
    assert "\u2028".encode() not in found
    assert json.loads(found.strip()[6:])["generated_text"].startswith("one\u2028two\u0085")


@case
def an_openai_stream_ends_with_done() -> None:
    found = curl("/v1/completions", {**COMPLETION, "stream": True}, "-N")
    assert found.kind == "text/event-stream"
    assert found.body.endswith(b"\n\ndata: [DONE]\n\n")


@case
def every_reply_has_an_id() -> None:
    for path in ("/health", "/nothing", "/v1/nothing", "/users/current"):
        assert b"x-request-id: mine" in curl(path, None, "-i", "-H", "x-request-id: mine").body


if __name__ == "__main__":
    words = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()
    run_cases("curl", words[1])
