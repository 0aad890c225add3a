"""Names and messages of others reach no terminal with what steers it: every verb against a hostile server."""

import ast
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from tests.cli.remote.verbs import command_of
from tests.support.paths import ROOT, tree_of

HOSTILE = "[red]:bomb:\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202e\u2066\u200b\u2028\u00adok\nmanylora: forged"
SHOWN = r"[red]:bomb:\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202e\u2066\u200b\u2028\xadok\nmanylora: forged"
LOCAL_VERBS = {"serve", "engine", "generate", "pull", "bench", "cost", "control", "bases", "plan", "cluster"}
LOCAL_VERBS |= {"doctor", "migrate-from"}
"""Verbs that ask no server of this project. `cluster` asks Ray: see `tests/cli/test_cluster.py`."""
WORDS = {
    "adapter": "a",
    "amount": "5",
    "assignments": "adapters=1",
    "base": "a",
    "file": str(ROOT / "tests/cli/remote/catalogue.yaml"),
    "input_": "1",
    "key_id": "abcdefgh",
    "month": "2026-11",
    "name": "a",
    "output": "1",
    "reason": "a",
    "repo": "a",
    "row": "a",
    "shares": "1=100",
    "tenant": "a",
    "tenants": "b",
    "version": "1",
}
TEXTS = (
    *("id", "uuid", "name", "email", "state", "plan", "created", "expires", "revoked", "tenant", "key", "description"),
    *("owner", "createdAt", "repo", "status", "effective", "reason", "corrects", "base", "baseModel", "adapter"),
    *("source", "error", "digest", "before", "after", "next", "at", "by_tenant", "by_key", "address", "verb", "kind"),
    *("grant", "edge", "ref", "period", "zone", "end", "url", "secret", "webhook", "begin", "total_usd", "note"),
    *("alias", "metric", "sticky", "code"),
)
NUMBERS = (
    *("number", "weight", "tag", "version", "rank", "bytes", "num_bytes", "pins", "hits", "opened_ms", "last_use_s"),
    *("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "charged_prompt_tokens", "nanousd"),
    *("charged_completion_tokens", "adapters", "adapter_bytes", "max_rank", "requests_per_minute"),
    *("tokens_per_minute", "concurrent_streams", "cost_nanousd", "input_nanousd", "output_nanousd", "left_nanousd"),
    *("cached_input_nanousd", "charged_cached_tokens", "priority", "spent_nanousd", "expired_nanousd", "held_nanousd"),
    *("overdraft_nanousd", "limit_nanousd", "attempts", "due_nanousd", "begin_ms", "end_ms"),
    *("granted_nanousd", "charged_nanousd", "leased_nanousd", "spent_this_month_nanousd", "monthly_budget_nanousd"),
)
LISTS = (
    *("tenants", "credits", "keys", "prices", "usage", "rows", "audit", "grants", "entries", "budgets", "webhooks"),
    *("messages", "invoices", "events"),
)
PASSWORD = "a long enough password"
RESULT = {"is_shadow": True, "failures": 1, "first_token_ms": 1.0, "total_ms": 1.0}
UNCALLED = {("repos", "upload")}
"""It sends files first; its last line is `say`'s, as the source shows."""


def verbs() -> list[tuple[str, ...]]:
    """Every verb that asks a server, found in the command itself, so that a new one is tried too."""

    def below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:  # click's, which typer bundles
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from below(child, (*path, name))
        elif path[0] not in LOCAL_VERBS and path not in UNCALLED:
            yield path

    return sorted(below(command_of(app), ()))


def some_verbs() -> list[Any]:
    """Every verb as a parameter, of which three quarters are part of the long runs alone."""
    marks = ((), pytest.mark.long, pytest.mark.long, pytest.mark.long)
    return [
        pytest.param(path, marks=marks[number % len(marks)], id=" ".join(path)) for number, path in enumerate(verbs())
    ]


def words_of(path: tuple[str, ...]) -> list[str]:
    """A call with each thing that the verb demands, and its confirmation given."""
    command: Any = command_of(app)  # as above
    for name in path:
        command = command.commands[name]
    words: list[str] = []
    for parameter in command.params:
        if parameter.name == "yes":
            words.append("--yes")
        elif parameter.param_type_name == "argument":
            words.append(WORDS.get(parameter.name, "a"))
        elif parameter.required:
            words += [parameter.opts[0], WORDS.get(parameter.name, "a")]
    return [*path, *words]


def one() -> dict[str, Any]:  # JSON
    """A body with every field that some verb reads, foreign text in each place where text may stand."""
    return (
        dict.fromkeys(TEXTS, HOSTILE)
        | dict.fromkeys(NUMBERS, 1)
        | dict.fromkeys(("public", "archived", "is_deleted", "is_preliminary", "is_in_force"), False)
        | {"alerts": [1], "hard": True, "stopped": True}
        | {"is_pinned": True, "is_verified": True, "has_more": True, "stage_ms": {HOSTILE: 1.0}, "scopes": [HOSTILE]}
        | {"guards": [HOSTILE], "count": 1, "maxTokens": 1}
        | {"aliases": {HOSTILE: 1}, "sharedWith": [HOSTILE], "names": [HOSTILE], "by": [HOSTILE]}
        | {"limits": dict.fromkeys(NUMBERS, 1), "balance": dict.fromkeys(NUMBERS, 1)}
    )


def answer(path: str) -> dict[str, Any]:  # as above
    """A body whose fields fit every reply. The key is of the tenant that the verbs name, and an operator's."""
    if path == "/v1/account/key":
        return one() | {"tenant": "a", "scopes": ["admin", HOSTILE]}
    each = one()
    body = each | {name: [each] for name in LISTS} | {"document": each}
    body |= {"versions": [each], "unfinished": [each | {"finetuningJob": {"error": HOSTILE}}]}
    if path.startswith("/admin/catalogue"):
        step = {
            "verb": "change",
            "kind": HOSTILE,
            "name": HOSTILE,
            "changes": {HOSTILE: {"old": HOSTILE, "new": HOSTILE}},
        }
        return body | {"plan": [step], "digest": HOSTILE, "done": 1, "failed": None, "keys": {HOSTILE: HOSTILE}}
    if "/aliases/" in path:
        rule = each | {"weights": {HOSTILE: 100}, "shadow": 1}
        body |= {"earlier": [rule], "results": [each | RESULT], "weights": rule["weights"], "shadow": 1}
    if path.rpartition("/")[2] in ("promotions", "promote"):
        score = {"version": 1, "right": 1, "total": 1}
        promotion = each | {"report": {"metric": HOSTILE, "candidate": score, "current": score}}
        return promotion | {"state": "promoted", "data": [promotion]}
    if path.startswith("/v2/deployments"):
        told = dict.fromkeys(("hourlyPrice", "statusDetail", "currentReplicas"), HOSTILE)
        replica = dict.fromkeys(("slot", "state", "since"), HOSTILE)
        nested = {"model": {"name": HOSTILE}, "billed": {"seconds": HOSTILE, "cost": HOSTILE}, "replicas": [replica]}
        deployment = each | told | nested | {"config": {"maxReplicas": HOSTILE}, "lastStartSeconds": 1.0}
        return {"data": [deployment] if path == "/v2/deployments" else deployment}
    body["data"] = {"repos": [dict(body)]} if "/repos" in path else [each]
    return body | {"tenant": each, "key": each} if path == "/admin/tenants" else body


def _is_document(path: str) -> bool:
    return ("/invoices/" in path and "/billing/" not in path) or "/document?" in path


class HostileServer(ThreadingHTTPServer):
    """Answers every request with hostile text, or refuses it with one."""

    is_refusing = False


class Handler(BaseHTTPRequestHandler):
    def handle_any(self) -> None:
        assert isinstance(self.server, HostileServer)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body: object = {"error": {"message": HOSTILE}} if self.server.is_refusing else answer(self.path)
        is_document = _is_document(self.path) and not self.server.is_refusing
        text = HOSTILE if is_document else json.dumps(body, ensure_ascii=False)
        self.send_response(400 if self.server.is_refusing else 200)
        self.send_header("content-type", "text/plain" if is_document else "application/json")
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815  # names of the standard library's

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(server: HostileServer, *words: str) -> Result:
    return CliRunner().invoke(
        app, [*words, "--url", f"http://127.0.0.1:{server.server_port}"], input=f"{PASSWORD}\n" * 2
    )


def assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("path", verbs(), ids=" ".join)
def test_no_verb_hands_foreign_text_to_the_terminal(path: tuple[str, ...], hostile: HostileServer) -> None:
    result = run(hostile, *words_of(path))
    assert result.exit_code == 0, (result.output, result.exception)  # a `KeyError`: a field that `one` lacks
    assert_harmless(result.stdout + result.stderr)


@pytest.mark.parametrize("path", some_verbs())
def test_no_verb_hands_foreign_json_to_the_terminal(path: tuple[str, ...], hostile: HostileServer) -> None:
    words = words_of(path)
    result = run(hostile, *words, "--json")
    if "No such option" in result.output:
        return
    assert result.exit_code == 0, result.output
    assert_harmless(result.stdout + result.stderr)


@pytest.mark.parametrize("path", some_verbs())
def test_no_verb_hands_a_foreign_refusal_to_the_terminal(path: tuple[str, ...], hostile: HostileServer) -> None:
    hostile.is_refusing = True
    try:
        result = run(hostile, *words_of(path))
    finally:
        hostile.is_refusing = False
    assert result.exit_code == 1
    assert result.stderr == f"manylora: {SHOWN}\n"


def test_tables_show_foreign_text_as_its_escape(hostile: HostileServer) -> None:
    for words in (
        ("account",),
        ("tenants", "show", "a"),
        ("repos", "show", "a"),
        ("adapters", "show", "a"),
        ("adapters", "pin", "a"),
    ):
        assert SHOWN in run(hostile, *words).stdout
    for line in ("tenants ls", "repos ls --shared", "keys ls a", "ledger ls"):
        cells = run(hostile, *line.split()).stdout.replace("\n", "").replace(" ", "")
        assert "[red]" in cells  # neither markup
        assert ":bomb:" in cells  # nor an emoji


def test_verbs_print_foreign_text_only_through_what_makes_it_printable() -> None:
    """`typer.echo` prints constants, a reply's JSON and the output of `json`; `output.py` escapes the rest."""
    folders = [ROOT / "src/manylora/cli" / name for name in ("remote", "billing", "catalogue")]
    files = [file for folder in folders for file in folder.glob("*.py") if file.name != "output.py"]
    assert len(files) > 10
    files.append(ROOT / "src/manylora/cli/cluster.py")
    for file in files:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.echo" and node.args:
                printed = ast.unparse(node.args[0])
                is_json = printed.endswith((".text", "text")) or ".dumps(" in printed or "printable_lines(" in printed
                is_ours = isinstance(node.args[0], ast.Constant) or printed.startswith("harmless(")
                assert is_json or is_ours, f"{file.name}:{node.lineno} prints {printed}"
