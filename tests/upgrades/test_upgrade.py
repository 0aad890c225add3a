"""A data directory of version 0.1 under today's server: nothing is lost, changed, or billed twice.

The assertions say what has to hold for ever: what a key may do, what a customer was promised, what a row cost.
"""

import io
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.config.settings import leaves, load_config
from manylora.control.process.backup import back_up, restore
from tests.control.postgres_server import PostgresServer
from tests.support.serving import running_server
from tests.support.waiting import wait_for
from tests.upgrades.data_directory import PARTS, VERSION_0_1, copy_to, load_rows, read_json
from tests.upgrades.surface import error_codes, metrics_in, options_of_verbs

TOLD: Mapping[str, Any] = read_json("told")
KEYS: Mapping[str, str] = read_json("keys")
NAMES: Mapping[str, Any] = read_json("names")
BOOKED = {row["id"]: row for row in TOLD["booked"]}
"""The rows that version 0.1 itself booked of the usage that it left unshipped."""
CONTENT_TYPES = {"txt": "text/plain", "json": "application/json", "csv": "text/csv", "html": "text/html"}
PRICE = {"prompt_tokens": 98_765, "completion_tokens": 500_003}
"""In force since October 2025, in nano-dollars a token."""


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[key]}"}


@dataclass
class Upgraded:
    """A server on the copy at its second start, and what its first start said."""

    folder: Path
    client: httpx2.Client
    first: Mapping[str, httpx2.Response] = field(default_factory=dict)
    first_rows: Mapping[str, Any] = field(default_factory=dict)

    def call(self, method: str, path: str, body: object = None, *, key: str = "admin") -> httpx2.Response:
        return self.client.request(method, path, json=body, headers=bearer(key))

    def get(self, path: str, *, key: str = "admin") -> Any:  # JSON
        reply = self.call("GET", path, key=key)
        assert reply.status_code == 200, (path, reply.text)
        return reply.json()

    def infer(self, key: str, model: str = "") -> httpx2.Response:
        body = {"model": model, "prompt": "the quick brown fox", "max_tokens": 6, "temperature": 0}
        return self.call("POST", "/v1/completions", body, key=key)

    def ledger(self) -> dict[str, dict[str, Any]]:
        rows = self.get("/admin/ledger?limit=1000")["rows"]
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row for row in rows}

    def settled(self) -> dict[str, dict[str, Any]]:
        """The ledger, once all usage that was there before now is in it: shipments keep their order."""
        own = self.infer("acme").headers["x-request-id"]
        wait_for(lambda: any(row["request_id"] == own for row in self.ledger().values()))
        return self.ledger()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def upgraded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    folder = tmp_path_factory.mktemp("upgraded") / "0.1"
    flags = ["--config", str(copy_to(folder))]
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database()
        load_rows(url)
        (folder / "control" / "control.db").unlink()
        flags += ["--set", f"control.database_url={url.render_as_string(hide_password=False)}"]
    with running_server(folder / "first.log", *flags) as at, httpx2.Client(base_url=at, timeout=60) as client:
        site = Upgraded(folder, client)
        first = {model: site.infer("acme", model) for model in TOLD["texts"] if not model.startswith("acme/")}
        rows = site.settled()
    with running_server(folder / "second.log", *flags) as at, httpx2.Client(base_url=at, timeout=60) as client:
        yield Upgraded(folder, client, first, rows)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

INFERS = ("acme", "acme_query", "acme_rotated", "acme_later", "acme_made", "beta")


@pytest.mark.parametrize("key", INFERS)
def test_a_key_that_could_query_infers_and_reads(upgraded: Upgraded, key: str) -> None:
    assert upgraded.infer(key).status_code == 200
    for path in ("/v1/models", "/v1/account", "/v1/account/usage?month=2025-10", "/v2/repos", "/users/current"):
        assert upgraded.call("GET", path, key=key).status_code == 200, path


@pytest.mark.parametrize("key", ["acme", "acme_upload", "acme_rotated", "beta"])
def test_a_key_that_could_upload_uploads(upgraded: Upgraded, key: str) -> None:
    repo = "own" if key == "beta" else "triage"
    assert upgraded.call("POST", "/v2/adapters/upload", {"repo": repo}, key=key).status_code == 200


def test_no_key_does_more_than_it_could(upgraded: Upgraded) -> None:
    refused = [
        *(
            ("POST", "/v2/adapters/upload", {"repo": "triage"}, key)
            for key in ("acme_query", "acme_later", "acme_made")
        ),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}, "acme_upload"),
        *(("GET", "/admin/tenants", None, key) for key in KEYS if key.startswith(("acme", "beta"))),
    ]
    for method, path, body, key in refused:
        assert upgraded.call(method, path, body, key=key).status_code in (401, 403), (path, key)


def test_stored_scopes_have_todays_names_and_one_key_of_a_tenant_manages(upgraded: Upgraded) -> None:
    today = {"query": {"infer", "read"}, "upload": {"upload", "read"}}
    for tenant, told in TOLD["keys"].items():
        now = {key["id"]: key for key in upgraded.get(f"/admin/tenants/{tenant}/keys")["keys"]}
        unlimited = [key["id"] for key in told if not (key["revoked"] or key["expires"] or any(key["limits"].values()))]
        for key in told:
            expected = set[str]().union(*(today.get(scope, {scope}) for scope in key["scopes"]))
            if "admin" in key["scopes"] or key["id"] in unlimited[:1]:
                expected |= {"infer", "manage", "read", "upload"}
            assert set(now[key["id"]]["scopes"]) == expected, key["name"]


@pytest.mark.parametrize("key", ["acme_old", "acme_revoked", "acme_expired"])
def test_a_key_that_has_ended_opens_nothing(upgraded: Upgraded, key: str) -> None:
    for method, path in (("GET", "/v1/account"), ("GET", "/v2/repos"), ("POST", "/v1/completions")):
        body = {"prompt": "x", "max_tokens": 1} if method == "POST" else None
        assert upgraded.call(method, path, body, key=key).status_code == 401, path


def test_a_tenant_that_was_suspended_or_closed_is_served_nothing(upgraded: Upgraded) -> None:
    assert {key: upgraded.infer(key).status_code for key in ("gone", "shut")} in (
        {"gone": 403, "shut": 401},
        {"gone": 403, "shut": 403},
    )


def test_every_key_has_its_name_limits_and_dates(upgraded: Upgraded) -> None:
    facts = ("id", "tenant", "name", "limits", "created", "expires", "revoked")
    for tenant, told in TOLD["keys"].items():
        now = {key["id"]: key for key in upgraded.get(f"/admin/tenants/{tenant}/keys")["keys"]}
        for key in told:
            assert _facts(now[key["id"]], facts) == {fact: key[fact] for fact in facts}


def _facts(body: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return fields of a body. The older version had no limits of bases, so that there are none."""
    assert body["limits"]["bases"] == {}
    limits = {name: limit for name, limit in body["limits"].items() if name != "bases"}
    return {name: limits if name == "limits" else body[name] for name in names}


# ── tenants and money ────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_tenant_has_its_names_limits_and_credit(upgraded: Upgraded) -> None:
    facts = ("id", "number", "uuid", "name", "email", "plan", "state", "weight", "limits", "created")
    for tenant, told in TOLD["tenants"].items():
        now = upgraded.get(f"/admin/tenants/{tenant}")
        assert _facts(now, facts) == {fact: told[fact] for fact in facts}
        assert now["balance"]["granted_nanousd"] == told["balance"]["granted_nanousd"]
        assert upgraded.get(f"/admin/tenants/{tenant}/credits")["credits"] == TOLD["credits"][tenant]


def test_prices_and_the_sums_of_a_closed_month_stay(upgraded: Upgraded) -> None:
    prices = _old(upgraded.get("/admin/prices")["prices"])
    assert [{name: now[name] for name in told} for told, now in zip(TOLD["prices"], prices, strict=True)] == (
        TOLD["prices"]
    )
    now = _by_names(upgraded.get("/admin/usage?month=2025-10&by=tenant,base,adapter")["usage"])
    told = {AS_INVOICED.get(names, names): sums for names, sums in _by_names(TOLD["usage"]).items()}
    told = {names: {**sums, "names": list(names)} for names, sums in told.items()}
    assert {names: {name: now[names][name] for name in row} for names, row in told.items()} == told
    assert set(now) == set(told)


AS_INVOICED: dict[tuple[str | None, ...], tuple[str | None, ...]] = {
    ("beta", "Tiny-Base", name): ("beta", "Tiny-Base", f"acme/{name}") for name in ("house/1", "triage/1")
}
"""Names of sums that lacked the adapter's owner, which the invoices of the older version have."""


def _by_names(sums: list[dict[str, Any]]) -> dict[tuple[str | None, ...], dict[str, Any]]:
    """Databases do not agree on where a row without a name comes."""
    return {tuple(row["names"]): row for row in sums}


def _old(prices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bases = {price["base"] for price in TOLD["prices"]}
    return [price for price in prices if price["base"] in bases]


@pytest.mark.parametrize("file", sorted((VERSION_0_1 / "invoices").iterdir()), ids=lambda path: path.name)
def test_an_invoice_of_a_closed_month_is_the_same_byte_for_byte(upgraded: Upgraded, file: Path) -> None:
    tenant, _, month = file.stem.partition("-")
    form = {"txt": "text"}.get(file.suffix[1:], file.suffix[1:])
    of_operator = upgraded.call("GET", f"/admin/invoices/{tenant}/{month}?format={form}")
    of_tenant = upgraded.call("GET", f"/v1/account/invoices/{month}?format={form}", key=tenant)
    for reply in (of_operator, of_tenant):
        assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (
            200,
            CONTENT_TYPES[file.suffix[1:]],
        )
        assert reply.content == file.read_bytes()


def test_unshipped_usage_and_the_journal_are_booked_once_over_two_starts(upgraded: Upgraded) -> None:
    rows = upgraded.settled()
    facts = ("tenant", "key", "request_id", "base", "adapter", "adapter_owner", "adapter_digest", "opened_ms")
    counts = ("prompt_tokens", "completion_tokens", "charged_prompt_tokens", "charged_completion_tokens")
    for row_id, told in BOOKED.items():
        for name in (*facts, *counts, "finish_reason", "price_version", "cost_nanousd"):
            assert rows[row_id][name] == told[name], (row_id, name)
            assert upgraded.first_rows[row_id][name] == told[name], (row_id, name)
    known = {*TOLD["in_ledger"], *BOOKED}
    assert known <= set(rows)
    assert not [row for row_id, row in rows.items() if row_id not in known and row["opened_ms"] < _UPGRADE_MS]


_UPGRADE_MS = 1_767_225_600_000
"""The first of January 2026: version 0.1 wrote nothing after it, and no server since then anything before it."""


def test_rows_of_the_ledger_stay_as_they_are(upgraded: Upgraded) -> None:
    rows = upgraded.ledger()
    for told in TOLD["ledger"]:
        assert {name: rows[told["id"]][name] for name in told} == told


def test_what_a_tenant_is_charged_is_what_its_rows_say(upgraded: Upgraded) -> None:
    rows = upgraded.settled()
    before = {row["id"]: row for row in read_json("rows")["ledger"]}
    for tenant in ("acme", "beta"):
        old = [row["cost_nanousd"] for row in (*before.values(), *BOOKED.values()) if row["tenant"] == tenant]
        new = [row for row in rows.values() if row["tenant"] == tenant and row["id"] not in {*before, *BOOKED}]
        cost = sum(row[f"charged_{name}"] * price for row in new for name, price in PRICE.items())
        balance = upgraded.get(f"/admin/tenants/{tenant}")["balance"]
        assert balance["charged_nanousd"] == sum(old) + cost
        assert balance["left_nanousd"] == balance["granted_nanousd"] - balance["charged_nanousd"]


def test_present_credit_is_grants_without_an_end_that_paid_what_was_charged(upgraded: Upgraded) -> None:
    upgraded.settled()
    for tenant, told in TOLD["credits"].items():
        wallet = upgraded.get(f"/admin/tenants/{tenant}/wallet")
        given = {each["id"]: each["nanousd"] for each in told if each["nanousd"] > 0}
        assert given.items() <= {each["id"]: each["nanousd"] for each in wallet["grants"]}.items()
        assert all(each["expires"] is None for each in wallet["grants"])
        left = sum(each["left_nanousd"] for each in wallet["grants"]) - wallet["overdraft_nanousd"]
        assert wallet["balance"]["left_nanousd"] == left


# ── uploads and adapters ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("key", "repo"), [("acme", "triage"), ("acme", "house"), ("beta", "own")])
def test_a_repository_has_its_versions_aliases_and_shares(upgraded: Upgraded, key: str, repo: str) -> None:
    told, now = TOLD["repos"][repo], upgraded.get(f"/v2/repos/{repo}", key=key)
    assert {name: now[name] for name in told if name != "versions"} == {
        name: value for name, value in told.items() if name != "versions"
    }
    for old, new in zip(told["versions"], now["versions"], strict=True):
        assert {name: new[name] for name in old} == old
        reply = upgraded.call("GET", f"/v2/repos/{repo}/version/{old['tag']}/download", key=key)
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            files = {name: archive.read(name) for name in PARTS}
        folder = VERSION_0_1 / "control" / "uploads" / key / repo / str(old["tag"])
        assert files == {name: (folder / name).read_bytes() for name in PARTS}


def test_an_archived_version_is_served_to_none_and_comes_back_unharmed(upgraded: Upgraded) -> None:
    assert upgraded.infer("acme", "triage/2").status_code == 404
    for is_archived, status in ((False, 200), (True, 404)):
        changed = upgraded.call("PUT", "/v2/repos/triage/version/2", {"archived": is_archived}, key="acme")
        assert changed.status_code == 200
        assert upgraded.infer("acme", "triage/2").status_code == status


def test_uploads_and_local_adapters_give_the_text_that_they_gave(upgraded: Upgraded) -> None:
    for model, text in TOLD["texts"].items():
        replies = [upgraded.infer("beta" if model.startswith("acme/") else "acme", model)]
        replies += [upgraded.first[model]] if model in upgraded.first else []
        for reply in replies:
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["text"] == text, model


def test_an_alias_and_a_share_lead_where_they_led(upgraded: Upgraded) -> None:
    for key, model in (("acme", "triage/prod"), ("beta", "acme/triage/prod"), ("beta", "acme/triage/1")):
        assert upgraded.infer(key, model).json()["choices"][0]["text"] == TOLD["texts"]["triage/1"]
    assert upgraded.infer("acme", "triage").json()["choices"][0]["text"] == TOLD["texts"]["triage/3"]
    assert upgraded.infer("beta", "acme/house").status_code == 200
    assert upgraded.infer("acme", "beta/own").status_code == 404


def test_a_packed_adapter_of_the_disk_tier_is_used_or_packed_again(upgraded: Upgraded) -> None:
    for reply in upgraded.first.values():
        assert reply.status_code == 200, reply.text
    for log in ("first.log", "second.log"):
        said = (upgraded.folder / log).read_text(encoding="utf-8")
        assert not re.search(r'^(ERROR|CRITICAL) |Traceback|"level": "(error|critical)"', said, re.MULTILINE), said


def test_a_dedicated_deployment_stays_recorded(upgraded: Upgraded) -> None:
    [told] = TOLD["deployments"]
    [now] = upgraded.get("/v2/deployments?type=dedicated", key="acme")["data"]
    facts = ("name", "uuid", "description", "type", "status", "config")
    assert {name: now[name] for name in facts} == {name: told[name] for name in facts}


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_of_a_file_is_taken() -> None:
    """Under its own name or, renamed, under another one of its group, where one value may have become a list."""
    file = VERSION_0_1 / "every_setting.toml"
    values = leaves(load_config(file, environ={}))
    for group, table in tomllib.loads(file.read_text(encoding="utf-8")).items():
        for name, given in table.items():
            value = tuple(given) if isinstance(given, list) else given
            if f"{group}.{name}" in values:
                assert values[f"{group}.{name}"] == value, name
            else:
                others = [each for key, each in values.items() if key.startswith(f"{group}.")]
                assert value in others or (value,) in others, name


def test_the_origin_of_the_settings_file_is_allowed(upgraded: Upgraded) -> None:
    reply = upgraded.client.get("/v1/models", headers={"origin": "https://console.example", **bearer("acme")})
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://console.example"


def test_a_metric_keeps_its_name_and_kind(upgraded: Upgraded) -> None:
    now = metrics_in(upgraded.call("GET", "/metrics").text)
    assert {name: now.get(name) for name in NAMES["metrics"]} == NAMES["metrics"]


def test_every_verb_takes_the_options_that_it_took() -> None:
    now = options_of_verbs()
    assert {verb: sorted({*options} - {*now.get(verb, ())}) for verb, options in NAMES["options"].items()} == {
        verb: [] for verb in NAMES["options"]
    }


def test_the_codes_of_errors_stay() -> None:
    assert {*NAMES["codes"]} - {*error_codes()} == set()


def test_a_backup_of_what_the_older_version_left_restores(tmp_path: Path) -> None:
    """The archive that docs/upgrading.md asks for, should it be made by the newer program."""
    old = load_config(flags={"control.dir": str(tmp_path / "old")}, environ={})
    new = load_config(flags={"control.dir": str(tmp_path / "new")}, environ={})
    shutil.copytree(VERSION_0_1 / "control", tmp_path / "old")
    back_up(old, tmp_path / "backup.tar")
    restore(new, tmp_path / "backup.tar")
    for path in (VERSION_0_1 / "control" / "uploads").rglob("*"):
        if path.is_file():
            there = tmp_path / "new" / path.relative_to(VERSION_0_1 / "control")
            assert there.read_bytes() == path.read_bytes()
    assert (tmp_path / "new" / "pepper").read_bytes() == (VERSION_0_1 / "control" / "pepper").read_bytes()
