"""The table of `make clients-test`, and the pins of its clients."""

from tests.clients.matrix import CLIENTS, PINS, SCRIPTS, SYSTEM, Client, Result, pinned, table


def test_a_row_tells_what_failed_what_waits_and_what_is_absent() -> None:
    openai, instructor = Client("openai", "openai_python.py"), Client("instructor", "x.py", waits=frozenset({"tools"}))
    results = [
        Result(client=openai, version="3.54.0", num_cases=2, failed=("chat",)),
        Result(client=instructor, version="1.17.0", num_cases=3, failed=("tools",)),
        Result(client=Client("openai-npm", "x.mjs"), absent="npm error code ENOTFOUND"),
    ]
    head, *rows = table(results).splitlines()
    assert head.split() == ["client", "version", "cases", "passed"]
    assert [row.split() for row in rows] == [
        ["openai", "3.54.0", "2", "1", "chat"],
        ["instructor", "1.17.0", "3", "2", "tools", "(waits)"],
        ["openai-npm", "0", "-", "npm", "error", "code", "ENOTFOUND"],
    ]


def test_every_client_has_a_script_and_a_pin_and_every_pin_a_client() -> None:
    lines = [line for line in PINS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert {line.split()[0] for line in lines} == {client.environment for client in CLIENTS} - {SYSTEM}
    for client in CLIENTS:
        assert (SCRIPTS / client.script).is_file()
        assert client.environment == SYSTEM or any(mark in pinned(client.environment) for mark in ("==", "@"))
