"""`manylora tenants`, `keys` and `limits` against a real control plane process: tables, JSON, verbs and failures."""

import json
from collections.abc import Callable, Iterator

import httpx2
import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from manylora.cli.remote.output import dollars, nanousd_of
from tests.control.control_process import ControlProcess, running_control
from tests.support.waiting import PATIENCE_S

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    with running_control(tmp_path_factory.mktemp("control") / "kept") as running:
        yield running


@pytest.fixture
def run(plane: ControlProcess) -> Run:
    def invoke(*words: str, answer: str | None = None, key: str | None = None) -> Result:
        given = ["--url", plane.url, *(["--key", key] if key else [])]
        return CliRunner(env={"MANYLORA_KEY": plane.admin_key}).invoke(app, [*words, *given], input=answer)

    return invoke


def fields_of(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.stderr
    return {name.strip(): text.strip() for name, text in (line.split("  ", 1) for line in result.stdout.splitlines())}


def status_of(plane: ControlProcess, key: str) -> int:
    return httpx2.get(
        f"{plane.url}/v1/account", headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S
    ).status_code


def test_a_tenant_is_made_shown_and_given_credit(run: Run, plane: ControlProcess) -> None:
    made = fields_of(run("tenants", "create", "acme", "--name", "Acme", "--credit", "1.5", "--limit", "max-rank=16"))
    assert (made["id"], made["state"], made["limit: max_rank"]) == ("acme", "active", "16")
    assert status_of(plane, made["key (shown once)"]) == 200
    shown = fields_of(run("tenants", "show", "acme"))
    assert (shown["credit left"], shown["name"]) == ("$1.50", "Acme")
    for _ in range(2):
        balance = fields_of(run("tenants", "credit", "acme", "25", "--id", "paid-1", "--reason", "paid"))
    assert balance["credit left"] == "$26.50"
    assert fields_of(run("tenants", "credit", "acme", "-0.0002"))["credit left"] == "$26.4998"
    history = run("tenants", "credits", "acme")
    assert [word for word in history.stdout.split() if "$" in word] == ["-$0.0002", "$25.00", "$1.50"]
    assert "paid-1" in history.stdout
    first = run("tenants", "credits", "acme", "--limit", "2")
    assert "there are more: --before" in first.stderr
    rest = run("tenants", "credits", "acme", "--before", first.stderr.split()[-1], "--json")
    assert [grant["reason"] for grant in json.loads(rest.stdout)["credits"]] == ["sign-up"]
    assert json.loads(run("tenants", "credits", "--json").stdout)["before"] is None


def test_a_suspended_tenant_is_refused_until_it_is_resumed(run: Run, plane: ControlProcess) -> None:
    key = fields_of(run("tenants", "create", "late"))["key (shown once)"]
    assert run("tenants", "suspend", "late").stdout == "done: tenant late is suspended\n"
    assert status_of(plane, key) == 403
    assert run("tenants", "resume", "late").stdout == "done: tenant late is active\n"
    assert status_of(plane, key) == 200
    assert run("tenants", "close", "late", answer="n\n").exit_code == 1
    assert status_of(plane, key) == 200
    assert run("tenants", "close", "late", "--yes").stdout == "done: tenant late is closed\n"
    assert "closed, for ever" in run("tenants", "resume", "late").stderr


def test_the_list_is_a_table_in_pages(run: Run) -> None:
    for code in ("page-a", "page-b"):
        run("tenants", "create", code)
    first = run("tenants", "ls", "--after", "page", "--limit", "1")
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["id", "page-a"]
    assert "--after page-a" in first.stderr
    assert json.loads(run("tenants", "ls", "--json").stdout)["next"] is None


def test_plan_and_weight_change(run: Run) -> None:
    run("tenants", "create", "heavy")
    changed = fields_of(run("tenants", "change", "heavy", "--weight", "4", "--plan", "gold"))
    assert (changed["weight"], changed["plan"]) == ("4", "gold")


def test_limits_of_a_base_that_are_not_named_stay(run: Run) -> None:
    base = "SmolLM2-135M-Instruct"
    run("tenants", "create", "by-base", "--limit", f"{base}/requests_per_minute=5", "--limit", "adapters=3")
    run("limits", "set", "by-base", f"{base}/tokens-per-minute=9", f"{base}/concurrent_streams=2")
    shown = fields_of(run("limits", "set", "by-base", f"{base}/requests_per_minute=none", "max_rank=4"))
    assert (shown["adapters"], shown["max_rank"]) == ("3", "4")
    assert {name: text for name, text in shown.items() if "/" in name} == {
        f"{base}/tokens_per_minute": "9",
        f"{base}/concurrent_streams": "2",
    }
    refused = run("limits", "set", "by-base", "smollm2/tokens_per_minute=1")
    assert (refused.exit_code, f"`{base}`" in refused.stderr) == (1, True)


def test_limits_that_are_not_named_stay(run: Run) -> None:
    run("tenants", "create", "bounded", "--limit", "adapters=3")
    run("limits", "set", "bounded", "requests_per_minute=60", "monthly_budget=25.5")
    shown = fields_of(run("limits", "set", "bounded", "requests-per-minute=none"))
    assert shown == fields_of(run("limits", "show", "bounded"))
    assert (shown["adapters"], shown["requests_per_minute"], shown["monthly_budget"]) == ("3", "-", "$25.50")
    assert json.loads(run("limits", "show", "bounded", "--json").stdout)["monthly_budget_nanousd"] == 25_500_000_000


def test_what_was_done_is_listed_with_who_did_it(run: Run, plane: ControlProcess) -> None:
    made = fields_of(run("tenants", "create", "audited"))
    assert made["key's scopes"] == "infer manage read upload"
    run("limits", "set", "audited", "adapters=3")
    listed = run("audit", "--tenant", "audited").stdout.splitlines()
    assert listed[0].split()[:4] == ["at", "tenant", "by", "key"]
    assert [line.split()[5:7] for line in listed[1:4]] == [["limit", "tenant"], ["create", "key"], ["create", "tenant"]]
    assert plane.admin_key.split("_")[1] in listed[1]
    own = json.loads(run("audit", "--own", "--verb", "limit", "--json", "--key", made["key (shown once)"]).stdout)
    assert [(row["after"], row["by_key"]) for row in own["audit"]] == [({"adapters": 3}, None)]
    page = run("audit", "--tenant", "audited", "--limit", "1")
    assert "there are more: --before" in page.stderr
    assert run("audit", "--own", "--tenant", "audited").exit_code == 2


def test_a_key_is_listed_with_the_one_that_made_it(run: Run) -> None:
    key = fields_of(run("tenants", "create", "origins"))["key (shown once)"]
    child = fields_of(run("keys", "create", "origins", "--scope", "infer", "--scope", "manage"))
    assert child["scopes"] == "infer manage"
    wrong = run("keys", "create", "origins", "--scope", "everything")
    assert (wrong.exit_code, "infer, read, upload, manage, admin" in wrong.stderr) == (1, True)
    new = fields_of(run("keys", "rotate", child["id"], "--grace", "60"))
    assert "has not been rotated" in run("keys", "revoke", key, "--yes", "--only").stderr
    assert "done: key" in run("keys", "revoke", child["id"], "--yes", "--only").stdout
    assert f"and with it {new['id']}" in run("keys", "revoke", child["id"], "--yes").stdout
    assert "origin" in run("keys", "ls", "origins").stdout.splitlines()[0].split()


def test_keys_are_made_listed_rotated_and_revoked(run: Run, plane: ControlProcess) -> None:
    run("tenants", "create", "keyed")
    made = fields_of(
        run("keys", "create", "keyed", "--name", "ci", "--scope", "query", "--limit", "concurrent_streams=8")
    )
    assert (made["scopes"], made["limit: concurrent_streams"]) == ("infer read", "8")
    old = made["key (shown once)"]
    new = fields_of(run("keys", "rotate", made["id"]))["key (shown once)"]
    assert [status_of(plane, key) for key in (old, new)] == [401, 200]
    assert run("keys", "revoke", new, answer="n\n").exit_code == 1
    assert "is revoked" in run("keys", "revoke", new, "--yes").stdout
    assert status_of(plane, new) == 401
    listed = run("keys", "ls", "keyed")
    assert len(listed.stdout.splitlines()) == 4
    assert new.split("_")[2] not in listed.stdout + run("keys", "ls", "keyed", "--json").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tenants", "show", "nobody"), "there is no tenant `nobody`"),
        (("tenants", "show", ".."), "'..' is no name"),
        (("tenants", "show", "a/b"), "no route"),
        (("tenants", "create", "v1"), "`id` must be"),
        (("tenants", "create", "x", "--credit", "much"), "an amount is in dollars"),
        (("tenants", "credit", "acme", "0.0000000001"), "at most nine decimals"),
        (("limits", "set", "operator", "speed=1"), "a limit is NAME=NUMBER"),
        (("limits", "set", "operator", "adapters=-1"), "adapters must be a whole number"),
        (("limits", "set", "operator", "org/base/adapters=1"), "a limit of a base is BASE/NAME=NUMBER"),
        (("limits", "set", "operator", "/tokens_per_minute=1"), "a limit of a base is BASE/NAME=NUMBER"),
        (("keys", "ls", "nobody"), "there is no tenant `nobody`"),
        (("keys", "create", "default", "--scope", "admin"), "is the tenant of open servers"),
        (("keys", "rotate", "00000000"), "there is no key `00000000`"),
    ],
)
def test_a_failure_is_one_line_in_the_servers_words(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("manylora: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_key_of_the_flag_goes_before_that_of_the_environment(run: Run) -> None:
    key = fields_of(run("tenants", "create", "flagged"))["key (shown once)"]
    assert "scope `admin`" in run("tenants", "ls", key=key).stderr
    assert "the key is not valid" in run("tenants", "ls", key="pb_00000000_" + "0" * 43).stderr
    assert "letters that no key has" in run("tenants", "ls", key="ключ").stderr


@pytest.mark.parametrize("nanousd", [0, 1, -1, 200, 10**9, 25 * 10**9, -(10**15) - 5])
def test_dollars_are_exact_both_ways(nanousd: int) -> None:
    assert nanousd_of(dollars(nanousd).replace(",", "")) == nanousd
