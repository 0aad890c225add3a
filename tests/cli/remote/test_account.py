"""What a customer does with one key: each verb asks about the key's own account, of a real control plane process."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from manylora.clock import SystemClock
from tests.cli.remote.test_tenants import fields_of
from tests.control.control_process import EDGE_TOKEN, running_control
from tests.control.plane import record
from tests.support.waiting import PATIENCE_S


@dataclass
class Customer:
    """acme, with one ledger row, and the control plane's address."""

    url: str
    admin_key: str
    key: str

    def run(self, *words: str, key: str | None = None) -> Result:
        environment = {"MANYLORA_URL": self.url, "MANYLORA_KEY": self.key if key is None else key}
        return CliRunner(env=environment).invoke(app, list(words))

    def good(self, *words: str, key: str | None = None) -> str:
        result = self.run(*words, key=key)
        assert result.exit_code == 0, result.output
        return result.stdout


@pytest.fixture(scope="module")
def customer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    with running_control(tmp_path_factory.mktemp("control") / "kept") as running:
        operator = Customer(running.url, running.admin_key, running.admin_key)
        key = fields_of(operator.run("tenants", "create", "acme", "--credit", "5"))["key (shown once)"]
        operator.good("tenants", "create", "other")
        rows = [
            record(number, tenant=name, opened_ms=int(1000 * SystemClock().wall_s()))
            for number, name in ((1, "acme"), (2, "other"))
        ]
        content = msgspec.json.encode({"records": rows})
        headers = {"authorization": f"Bearer {EDGE_TOKEN}"}
        httpx2.post(
            f"{running.url}/internal/usage", content=content, headers=headers, timeout=PATIENCE_S
        ).raise_for_status()
        yield Customer(running.url, running.admin_key, key)


def test_the_account_shows_the_key_with_balance_and_limits(customer: Customer) -> None:
    shown = fields_of(customer.run("account"))
    assert (shown["key"], shown["key's scopes"]) == (customer.key.split("_")[1], "infer manage read upload")
    assert (shown["tenant"], shown["plan"], shown["credit given"]) == ("acme", "standard", "$5.00")
    assert shown["limit: adapters"] == "-"
    told = json.loads(customer.good("account", "--json"))
    assert (told["key"]["tenant"], told["account"]["id"]) == ("acme", "acme")
    assert "$5.00" in customer.good("account", "credits")


def test_a_key_that_cannot_read_is_shown_itself(customer: Customer) -> None:
    made = fields_of(customer.run("keys", "create", "--scope", "infer", "--limit", "max_rank=8"))
    result = customer.run("account", key=made["key (shown once)"])
    assert result.exit_code == 0
    assert "key's limit: max_rank  8" in result.stdout
    assert "shown to a key with the scope `read`" in result.stderr
    assert "scope `read`" in customer.run("usage", key=made["key (shown once)"]).stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("usage", "--by", "base"), ("--tenant", "acme")),
        (("ledger", "ls"), ("--tenant", "acme")),
        (("invoice",), ("acme",)),
        (("tenants", "credits"), ("acme",)),
        (("tenants", "show"), ("acme",)),
        (("limits", "show"), ("acme",)),
        (("keys", "ls"), ("acme",)),
        (("audit",), ("--tenant", "acme")),
    ],
)
def test_a_verb_answers_of_the_keys_tenant_and_of_no_other(
    customer: Customer, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    about = (*words, *named)
    own = customer.good(*words)
    assert own.strip()
    assert customer.good(*about) == own
    others = customer.run(*(word.replace("acme", "other") for word in about))
    assert (others.exit_code, others.stdout) == (1, "")
    assert others.stderr == "manylora: the key is of tenant acme: about tenant other the operator's key alone may ask\n"
    if words[0] not in ("audit", "keys"):  # the operator is told more
        assert customer.good(*about, key=customer.admin_key) == own


def test_the_operators_key_sees_all_tenants_and_with_own_its_own(customer: Customer) -> None:
    everybody = customer.good("usage", key=customer.admin_key)
    assert {line.split()[0] for line in everybody.splitlines()} == {"tenant", "acme", "other"}
    assert json.loads(customer.good("ledger", "ls", "--own", "--json", key=customer.admin_key))["rows"] == []
    assert json.loads(customer.good("usage", "--json"))["by"] == ["base", "adapter"]


def test_an_invoice_is_of_this_month_unless_one_is_named(customer: Customer, tmp_path: Path) -> None:
    assert "Mistral-7b-instruct" in customer.good("invoice")
    assert "total  $0.00" in customer.good("invoice", "2023-11")
    file = tmp_path / "this-month.csv"
    customer.good("invoice", "--format", "csv", "--out", str(file))
    assert "Mistral-7b-instruct" in file.read_text()


def test_a_customer_steers_its_own_keys(customer: Customer) -> None:
    made = fields_of(customer.run("keys", "create", "--name", "ci"))
    assert (made["tenant"], made["name"]) == ("acme", "ci")
    limited = customer.good("keys", "limit", made["id"], "requests_per_minute=60")
    assert "60" in limited
    new = fields_of(customer.run("keys", "rotate", made["id"]))
    assert f"done: key {new['id']} of tenant acme is revoked" in customer.good("keys", "revoke", new["id"], "--yes")
    theirs = json.loads(customer.good("keys", "ls", "other", "--json", key=customer.admin_key))["keys"][0]["id"]
    assert "there is no key" in customer.run("keys", "revoke", theirs, "--yes").stderr


def test_prices_are_shown_to_a_customer_and_without_a_key(customer: Customer) -> None:
    shown = customer.good("prices", "ls")
    assert shown.split()[0] == "base"
    assert customer.good("prices", "ls", key="") == shown
    assert "Mistral-7b-instruct" in customer.good("prices", "ls", key=customer.admin_key)
    assert "send a key" in customer.run("usage", key="").stderr
    assert "the key is not valid" in customer.run("prices", "ls", key="pb_00000000_" + "0" * 43).stderr


def test_the_help_groups_the_verbs() -> None:
    told = CliRunner().invoke(app, ["--help"]).stdout
    places = [told.index(title) for title in ("Serve and measure", "Your account on a server", "Operate a server")]
    assert (
        places[0] < told.index(" generate ") < places[1] < told.index(" invoice ") < places[2] < told.index(" tenants ")
    )
