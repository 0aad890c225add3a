"""The table of clients in README: a row for each client, with its script, its version and what the script tests."""

import re

import pytest

from tests.clients.matrix import CLIENTS, SCRIPTS, SYSTEM, Client, pinned
from tests.support.paths import ROOT

FEATURES = {
    "async": r"^async def ",
    "batches": r"\.batches\.create\(|\.batch\(",
    "classification": r"\.classify\(",
    "conversations": r"\.conversations\.create\(",
    "embeddings": r"\.embeddings\.create\(|\.embed\(",
    "errors?|refusals": r"raised\(|assert\.rejects\(|refused\(|def every_refusal",
    "log-probabilities": r"\blogprobs[=:]|output_type.*multiple_choice|return_k_alternatives=",
    "merged_adapters": r"merged_adapters=",
    "metrics": r"\.metrics\(",
    "models": r"\.models\.list\(",
    "parse": r"completions\.parse\(",
    "prompt templates": r"\.prompt_template\(",
    "responses": r"\.responses\.create\(",
    "schema": r"response_format[=:]|JSON_SCHEMA|json_schema",
    "scopes": r"\bscopes\b",
    "streams|streamed": r"stream=True|stream: true|[._]stream(_\w+)?\(",
    "tools": r"\btools[=:]|Mode\.TOOLS",
}
"""Words of a row, and the code of a script that tests what they name."""
ROWS = re.findall(
    r"^\| \[.+?\]\(tests/clients/scripts/.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
)


def source_of(script: str) -> str:
    """Return the text of a script, and of the scripts whose cases run with its own."""
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    more = re.findall(r"^from tests\.clients\.scripts import (\w+) as _", text, re.MULTILINE)
    return "\n".join([text, *((SCRIPTS / f"{name}.py").read_text(encoding="utf-8") for name in more)])


def test_each_client_has_one_row_that_links_to_its_script() -> None:
    linked = [re.findall(r"\]\((tests/[^)]+)\)", row) for row in ROWS]
    scripts = {client.script for client in CLIENTS}
    assert sorted(linked) == sorted([f"tests/clients/scripts/{script}"] for script in scripts)
    assert all((ROOT / path).is_file() for [path] in linked)


@pytest.mark.parametrize(
    "client", [client for client in CLIENTS if client.environment != SYSTEM], ids=lambda client: client.environment
)
def test_the_row_of_a_client_names_its_version(client: Client) -> None:
    [row] = [row for row in ROWS if f"/{client.script})" in row]
    version = re.split("==|@", pinned(client.environment))[1]
    shown = re.findall(r"\d+(?:\.\d+)+", row.split("|")[1])
    assert any(f"{version}.".startswith(f"{number}.") for number in shown), (version, shown)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.findall(r"scripts/(\w+)", row)[0])
def test_a_row_names_the_features_that_its_script_tests(row: str) -> None:
    [script] = re.findall(r"scripts/([\w.]+)\)", row)
    source, words = source_of(script), row.split("|")[3]
    tested = {words for words, code in FEATURES.items() if re.search(code, source, re.MULTILINE)}
    named = {each for each in FEATURES if re.search(rf"(?:\b|_)({each})", words, re.IGNORECASE)}
    assert named == tested, (named - tested, tested - named)


def test_each_feature_is_one_of_a_script() -> None:
    sources = [source_of(client.script) for client in CLIENTS]
    for words, code in FEATURES.items():
        assert any(re.search(code, source, re.MULTILINE) for source in sources), words
