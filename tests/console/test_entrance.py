"""The entrance of the console: sign-up, sign-in, sessions and passwords, and attacks on each."""

from pathlib import Path

import pytest

from manylora.console.visitors import inner_path
from tests.console.house import ADDRESS, PASSWORD, ConsoleHouse, in_console, text_of, token_of

OTHER = "another long password"


def cookie_of(headers: list[str], name: str) -> str:
    [found] = [header for header in headers if header.startswith(f"{name}=")]
    return found


def test_a_stranger_signs_up_and_sees_its_free_credit_and_its_key_once(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        assert (await browser.get("/console")).headers["location"] == "/console/sign-in?next=%2Fconsole"
        welcome = await browser.sign_up("acme", name="Acme")
        assert welcome.status_code == 200
        assert "Welcome, Acme" in text_of(welcome.text)
        assert "pb_" in welcome.text
        overview = await browser.get("/console")
        assert "Balance $25.00" in text_of(overview.text)
        keys = await browser.get("/console/keys")
        assert "first key" in keys.text
        assert welcome.text.split('value="pb_')[1][:50] not in keys.text
        await browser.post("/console/sign-out", {}, page="/console")
        assert (await browser.get("/console")).status_code == 303
        back = await browser.sign_in("acme", next="/console/keys")
        assert (back.status_code, back.headers["location"]) == (303, "/console/keys")

    in_console(tmp_path, scenario)


def test_a_sign_in_gives_a_new_session_whatever_cookie_came_before(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        first, attacker = house.new_browser(), house.new_browser()
        await first.sign_up("acme")
        await attacker.sign_up("evil")
        planted = attacker.client.cookies["manylora_session"]
        victim = house.new_browser()
        victim.client.cookies.set("manylora_visit", "a" * 64, path="/console")
        reply = await victim.sign_in("acme")
        own = victim.client.cookies["manylora_session"]
        assert own not in (planted, first.client.cookies["manylora_session"])
        header = cookie_of(reply.headers.get_list("set-cookie"), "manylora_session")
        assert all(word in header for word in ("HttpOnly", "SameSite=Strict", "Path=/console", "Max-Age=43200"))
        assert "Secure" not in header  # this server speaks plain HTTP here

    in_console(tmp_path, scenario)


def test_a_session_ends_at_its_time_and_by_its_revocation(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, other = house.new_browser(), house.new_browser()
        await browser.sign_up("acme")
        await other.sign_in("acme")
        session = other.client.cookies["manylora_session"][3:11]
        await browser.post(f"/console/sign-in-settings/end/{session}", {}, page="/console/sign-in-settings")
        assert (await other.get("/console")).status_code == 303
        assert (await browser.get("/console")).status_code == 200
        house.plane.clock.advance(43_201)
        assert (await browser.get("/console")).status_code == 303

    in_console(tmp_path, scenario)


def test_the_database_has_neither_passwords_nor_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        token = browser.client.cookies["manylora_session"]
        found.append(token)

    found: list[str] = []
    monkeypatch.undo()
    in_console(tmp_path, scenario)
    [token] = found
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert token[3:11].encode() in files
    assert token[12:].encode() not in files
    assert PASSWORD.encode() not in files
    assert b"scrypt$16384$8$5$" in files


def test_a_lost_password_is_replaced_by_a_code_that_works_once(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, old = house.new_browser(), house.new_browser()
        await old.sign_up("acme")
        made = (await house.plane.call("POST", "/admin/tenants/acme/login-code", {})).json()
        fields = {"tenant": "acme", "code": made["code"].upper(), "password": OTHER, "again": OTHER}
        reply = await browser.post("/console/new-password", fields)
        assert reply.headers["location"] == "/console"
        assert (await browser.get("/console")).status_code == 200
        assert (await old.get("/console")).status_code == 303
        again = await house.new_browser().post("/console/new-password", fields)
        assert again.status_code == 401
        assert (await house.new_browser().sign_in("acme")).status_code == 401
        late = (await house.plane.call("POST", "/admin/tenants/acme/login-code", {})).json()
        house.plane.clock.advance(3_601)
        assert (
            await house.new_browser().post("/console/new-password", fields | {"code": late["code"]})
        ).status_code == 401

    in_console(tmp_path, scenario)


def test_a_present_tenant_claims_its_login_with_a_full_key_alone(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        full = await house.plane.new_tenant("acme")
        body = {"password": PASSWORD}
        for refused in (
            {"scopes": ["manage"]},
            {"scopes": ["infer", "read", "upload", "manage"], "expires_in_s": 60.0},
        ):
            key = (await house.plane.call("POST", "/v1/account/keys", refused, key=full)).json()["key"]
            assert (await house.plane.call("PUT", "/v1/account/login", body, key=key)).status_code == 403
        own = {"name": "small", "limit_nanousd": 1, "hard": True, "key": full.split("_")[1]}
        made = (await house.plane.call("POST", "/admin/tenants/acme/budgets", own)).json()
        refused_by_budget = await house.plane.call("PUT", "/v1/account/login", body, key=full)
        assert refused_by_budget.status_code == 403
        assert "`small`" in refused_by_budget.text
        await house.plane.call("DELETE", f"/admin/budgets/{made['id']}")
        assert (await house.plane.call("PUT", "/v1/account/login", body, key=full)).json()["has_password"]
        browser = house.new_browser()
        assert (await browser.sign_in("acme")).status_code == 303
        token = browser.client.cookies["manylora_session"]
        assert (await house.plane.call("PUT", "/v1/account/login", {"password": OTHER}, key=token)).status_code == 401
        known = {"password": OTHER, "current": PASSWORD}
        assert (await house.plane.call("PUT", "/v1/account/login", known, key=token)).status_code == 200
        assert (await house.plane.call("PUT", "/v1/account/login", body)).status_code == 200  # the operator's own
        operator = house.new_browser()
        await operator.sign_in("operator")
        scopes = (
            await house.plane.call("GET", "/v1/account/key", key=operator.client.cookies["manylora_session"])
        ).json()
        assert "admin" in scopes["scopes"]

    in_console(tmp_path, scenario)


def test_keys_made_in_a_session_outlive_it_and_a_session_is_no_key_of_the_list(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        session = browser.client.cookies["manylora_session"]
        made = await browser.post("/console/keys", {"name": "ci", "scope": ["infer", "read"]})
        key = made.text.split('value="pb_')[1].partition('"')[0]
        assert session[3:11] not in (await browser.get("/console/keys")).text
        assert (
            await house.plane.call("POST", f"/v1/account/keys/{session[3:11]}/rotate", {}, key=session)
        ).status_code == 400
        await browser.post("/console/sign-out", {}, page="/console")
        assert (await house.plane.call("GET", "/v1/account/key", key=session)).status_code == 401
        kept = await house.plane.call("GET", "/v1/account/key", key=f"pb_{key}")
        assert (kept.status_code, kept.json()["expires"]) == (200, None)

    in_console(tmp_path, scenario)


def test_tries_are_counted_and_right_ones_are_not(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        await house.new_browser().sign_up("acme")
        for _ in range(21):
            assert (await house.new_browser().sign_in("acme")).status_code == 303
        wrong = [await house.new_browser().sign_in("acme" if n % 2 else "nobody-here", OTHER) for n in range(21)]
        assert {reply.status_code for reply in wrong[:20]} == {401}
        assert len({text_of(reply.text).replace("nobody-here", "acme") for reply in wrong[:20]}) == 1
        assert wrong[20].status_code == 429
        assert (await house.new_browser().sign_in("acme")).status_code == 429
        house.plane.clock.advance(901)
        assert (await house.new_browser().sign_in("acme")).status_code == 303

    in_console(tmp_path, scenario)


def test_a_new_tenant_whose_sign_in_is_refused_sees_its_key_all_the_same(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        for number in range(20):
            assert (await house.new_browser().sign_in(f"nobody-{number}", OTHER)).status_code == 401
        browser = house.new_browser()
        welcome = await browser.sign_up("acme")
        assert "pb_" in welcome.text
        assert "Signing in was refused" in text_of(welcome.text)
        assert (await browser.get("/console")).status_code == 303
        house.plane.clock.advance(901)
        assert (await browser.sign_in("acme")).status_code == 303

    in_console(tmp_path, scenario)


@pytest.mark.parametrize("stolen", ["", "0" * 64, "of another visitor"])
def test_a_form_without_the_visitor_s_own_token_changes_nothing(tmp_path: Path, stolen: str) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, other = house.new_browser(), house.new_browser()
        await browser.sign_up("acme")
        await other.sign_up("evil")
        token = token_of((await other.get("/console")).text) if "of" in stolen else stolen
        for path in ("/console/keys", "/console/sign-out", "/console/sign-in-settings/end/all", "/console/sign-in"):
            reply = await browser.client.post(path, data={"name": "mine", "scope": "infer", "form_token": token})
            assert reply.status_code == 403, path
        assert "mine" not in (await browser.get("/console/keys")).text
        await_json = await browser.client.post("/console/keys", json={"form_token": token})
        assert await_json.status_code == 400

    in_console(tmp_path, scenario)


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/console/../v1",
        "/console//evil",
        "/consolex",
        "\t/console",
    ],
)
def test_no_sign_in_leads_to_another_place(target: str) -> None:
    assert inner_path(target) == "/console"


def test_names_are_text_and_pages_run_and_keep_nothing(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"

    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme", name=hostile)
        await browser.post("/console/keys", {"name": hostile, "scope": "infer"})
        pages = [await browser.get(path) for path in ("/console", "/console/keys", "/console/sign-in-settings")]
        pages += [await house.new_browser().sign_in(hostile), await house.new_browser().get("/console/nowhere")]
        for page in pages:
            assert "<img src=x" not in page.text
            assert "<script>" not in page.text
            assert " style=" not in page.text
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert page.headers["cache-control"] == "no-store"
            assert page.headers["x-frame-options"] == "DENY"
        assert "&lt;script&gt;" in pages[1].text

    in_console(tmp_path, scenario)


def test_no_page_shows_another_tenant(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, other = house.new_browser(), house.new_browser()
        await browser.sign_up("acme")
        await other.sign_up("rival")
        key = (await other.get("/console/keys")).text.split("/console/keys/")[1][:8]
        reply = await browser.post(f"/console/keys/{key}/revoke", {"force": "1"}, page="/console/keys")
        assert "there is no key" in text_of(reply.text)
        session = other.client.cookies["manylora_session"][3:11]
        page = "/console/sign-in-settings"
        reply = await browser.post(f"{page}/end/{session}", {}, page=page)
        assert reply.status_code == 404
        assert (await other.get("/console")).status_code == 200

    in_console(tmp_path, scenario)


def test_files_are_small_and_kept_by_caches_alone(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        page = await browser.get("/console/sign-in")
        paths = [text.partition('"')[0] for text in page.text.split('="/console/static/')[1:]]
        sizes = [len(page.content)]
        for path in set(paths):
            reply = await browser.get(f"/console/static/{path}")
            assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
            sizes.append(len(reply.content))
        assert sum(sizes) <= 150_000
        assert (await browser.get("/console/static/..%2Fapi.py")).status_code == 404
        assert ADDRESS not in page.text

    in_console(tmp_path, scenario)
