"""What the operating system refuses ends a command with one sentence: file, cause, remedy, exit code; no traceback."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from manylora.config.environment import child_environment
from tests.conftest import long, missing, thinned
from tests.forks import forks
from tests.models.test_llama import SMALL, save_random
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache

NOBODY = 4711
"""A user that no list of users has."""
COMMAND = ("-m", "manylora")
LIMITED = """
import os, resource, sys
name, number = sys.argv[1:3]
resource.setrlimit(getattr(resource, name), (int(number), int(number)))
os.execv(sys.executable, [sys.executable, "-m", "manylora", *sys.argv[3:]])
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    save_random(directory, LlamaForCausalLM(LlamaConfig(**SMALL)))
    save_byte_level(directory)
    return directory


@dataclass(frozen=True)
class Case:
    """words: the command, `{tmp}` and `{base}` filled in; said: parts of its one line, filled in alike.

    program, output  of a case that is no fork: arguments of Python before the words, and the place of its output
    """

    words: Sequence[str]
    said: Sequence[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None
    user: int | None = None
    program: Sequence[str] = ()
    output: str | None = None


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def taken_as_a_file(name: str) -> Callable[[Path], object]:
    return write(name, b"a file, where a folder should be")


def hold_database(folder: Path) -> None:
    """A database that another program writes, until the test ends: the connection is kept by the folder's name."""
    (folder / "control").mkdir()
    connection = sqlite3.connect(folder / "control" / "control.db", isolation_level=None)
    connection.execute("CREATE TABLE other (x)")
    connection.execute("BEGIN EXCLUSIVE")
    HELD.append(connection)


def write_base(weights: str, content: bytes) -> Callable[[Path], object]:
    """A directory with a config.json and one file of weights."""

    def prepare(folder: Path) -> None:
        (folder / "base").mkdir()
        LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(folder / "base")
        (folder / "base" / weights).write_bytes(content)

    return prepare


def two_bases(folder: Path) -> None:
    """Two folders whose names differ in the case of letters alone, each with a config.json."""
    for name in ("base", "more/BASE"):
        LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(folder / name)


HELD: list[sqlite3.Connection] = []
SERVE = ("serve", "--base", "{base}", "--port", "0", "--set", "model.cache_dir={tmp}/cache")
BAD_BASE = ("serve", "--base", "{tmp}/base", "--port", "0", "--set", "model.cache_dir={tmp}/cache")
CONTROL = ("control", "admin-key", "--set", "control.dir={tmp}/control")
CONFIG = ("serve", "--config", "{tmp}/settings.toml")
RUN_CONTROL = ("control", "--set", "control.edge_token=0123456789abcdef", "--set", "control.dir={tmp}/control")

CASES = {
    "no home and no such user": Case(
        ["pull"],
        ["HOME is not set", str(NOBODY), "MANYLORA_MODEL_CACHE_DIR"],
        {"HOME": None, "XDG_CACHE_HOME": None},
        user=NOBODY,
    ),
    "a home that is not there": Case(
        ["pull"], ["/proc/nowhere", "model.cache_dir"], {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": None}
    ),
    "a home that is a file": Case(
        ["pull"],
        ["{tmp}/home/.cache", "Not a directory", "model.cache_dir"],
        {"HOME": "{tmp}/home", "XDG_CACHE_HOME": None},
        taken_as_a_file("home"),
    ),
    "a relative home": Case(["pull"], ["HOME must be an absolute path", "'x'"], {"HOME": "x", "XDG_CACHE_HOME": None}),
    "a home of a user that is not there": Case(["serve", "--set", "model.cache_dir=~no-such-user/x"], ["home folder"]),
    "a cache that is a file": Case(
        ["pull", "org/model"],
        ["{tmp}/cache", "model.cache_dir"],
        {"MANYLORA_MODEL_CACHE_DIR": "{tmp}/cache"},
        taken_as_a_file("cache"),
    ),
    "weights cut short": Case(
        BAD_BASE, ["{tmp}/base/model.safetensors", "cut short"], prepare=write_base("model.safetensors", b"\x08")
    ),
    "pickled weights": Case(
        BAD_BASE,
        ["pytorch_model.bin is pickled", "{tmp}/base", "save_pretrained"],
        prepare=write_base("pytorch_model.bin", b"\x80"),
    ),
    "a GGUF file cut short": Case(
        ["serve", "--base", "{tmp}/base/x.gguf", "--set", "model.cache_dir={tmp}/cache"],
        ["{tmp}/base/x.gguf", "GGUF"],
        prepare=write_base("x.gguf", b"GGUF"),
    ),
    "less memory than the base takes": Case(
        [*SERVE, "--set", "engine.memory_bytes=1000000"],
        ["the memory plan does not fit", "weights", "available"],
        prepare=lambda folder: make_cache(folder / "cache"),
    ),
    "settings of engines beside engines of a fleet": Case(
        [*SERVE, "--quantize", "int8", "--set", "fleet.engines=127.0.0.1:1"], ["model.quantize: ", "fleet.engines"]
    ),
    "one base twice": Case([*SERVE, "--base", "{base}"], ["{base} is given twice", "model.more_bases"]),
    "two bases of one name": Case(
        ["serve", "--base", "{tmp}/base", "--base", "{tmp}/more/BASE", "--set", "model.cache_dir={tmp}/cache"],
        ["two bases have the name base: {tmp}/base and {tmp}/more/BASE", "rename"],
        prepare=two_bases,
    ),
    "less memory than two bases take": Case(
        [*SERVE, "--base", "{tmp}/base", "--set", "engine.memory_bytes=600000000"],
        ["the memory cannot hold 2 bases", "base", "available 572.2 MiB"],
        prepare=two_bases,
    ),
    "a share of a base that is not served": Case(
        [*SERVE, "--set", "model.memory_share_of=other=2"], ["model.memory_share_of: other is no base of this server"]
    ),
    "ranks that do not divide the heads": Case(
        [*SERVE, "--tensor-parallel", "4"],
        ["{base}: tensor-parallel degree 4 does not divide the 6 attention heads", "degrees of this base: 1, 2"],
    ),
    "ranks of one of two bases that do not divide its heads": Case(
        [*SERVE, "--base", "{tmp}/base", "--set", "model.tensor_parallel_of={tmp}/base=3"],
        ["{tmp}/base: tensor-parallel degree 3 neither divides the 2 key-value heads nor is a multiple of them"],
        prepare=two_bases,
    ),
    "ranks of a base that is not served": Case(
        [*SERVE, "--set", "model.tensor_parallel_of=other=2"],
        ["model.tensor_parallel_of: other is no base of this server"],
    ),
    "more ranks than the memory holds": Case(
        [*SERVE, "--tensor-parallel", "2", "--set", "engine.memory_bytes=600000000"],
        ["the memory plan does not fit", "available    286.1 MiB for each of 2 ranks"],
    ),
    "ranks on one card": Case(
        [*SERVE, "--tensor-parallel", "2", "--device", "cuda:1"],
        ["model.device cuda:1 is one card", "model.tensor_parallel", "must be cuda"],
    ),
    "ranks of a named base on one card": Case(
        [*SERVE, "--device", "cuda:0", "--set", "model.tensor_parallel_of={base}=2"],
        ["model.device cuda:0 is one card", "model.tensor_parallel", "must be cuda"],
    ),
    "ranks without a known way to meet": Case(
        [*SERVE, "--tensor-parallel", "2", "--set", "model.collectives=mpi"],
        ["model.collectives must be one of gloo, nccl"],
    ),
    "no number of ranks": Case([*SERVE, "--tensor-parallel", "0"], ["model.tensor_parallel must be at least 1"]),
    "ranks of a reply on the terminal that do not divide the heads": Case(
        ["generate", "hello", "--base", "{base}", "--tensor-parallel", "4"],
        ["{base}: tensor-parallel degree 4 does not divide the 6 attention heads"],
    ),
    "a plan of ranks that do not divide the heads": Case(
        ["plan", "--base", "{base}", "--tensor-parallel", "4"],
        ["{base}: tensor-parallel degree 4 does not divide the 6 attention heads"],
    ),
    "a plan of one base twice": Case(["plan", "--base", "{base}", "--base", "{base}"], ["{base} is given twice"]),
    "a plan of two bases in too little memory": Case(
        ["plan", "--base", "{base}", "--base", "{tmp}/base", "--device-memory", "600MB"],
        ["the memory cannot hold 2 bases", "available 572.2 MiB"],
        prepare=two_bases,
    ),
    "uploads in a file": Case(
        [*SERVE, "--set", "adapters.registry_dir={tmp}/up"], ["{tmp}/up", "File exists"], prepare=taken_as_a_file("up")
    ),
    "metering in a file": Case(
        [*SERVE, "--set", "metering.dir={tmp}/m"],
        ["metering.dir {tmp}/m", "File exists"],
        prepare=taken_as_a_file("m"),
    ),
    "control in a file": Case(
        CONTROL, ["control.dir {tmp}/control", "File exists", "move it away"], prepare=taken_as_a_file("control")
    ),
    "a database that another holds": Case(
        [*CONTROL, "--set", "control.database_url=sqlite:///{tmp}/control/control.db?timeout=0.1"],
        ["{tmp}/control/control.db", "database is locked", "another program holds it"],
        prepare=hold_database,
    ),
    "a database that is none": Case(
        [*CONTROL, "--set", "control.database_url=sqlite:///{tmp}/text.db"],
        ["{tmp}/text.db", "not a database", "restore"],
        prepare=write("text.db", b"this is text, and no database, of more bytes than the header of one has" * 20),
    ),
    "a database without its folder": Case(
        [*CONTROL, "--set", "control.database_url=sqlite:///{tmp}/none/x.db"],
        ["{tmp}/none/x.db", "No such file or directory", "make it"],
    ),
    "a pepper cut short": Case(
        [*CONTROL[:2], "--set", "control.dir={tmp}"],
        ["{tmp}/pepper is damaged", "restore"],
        prepare=write("pepper", b""),
    ),
    "settings in UTF-16": Case(
        CONFIG, ["{tmp}/settings.toml", "save it as UTF-8"], prepare=write("settings.toml", "[server]".encode("utf-16"))
    ),
    "settings in Latin-1": Case(
        CONFIG,
        ["{tmp}/settings.toml", "byte 0xe4 at 9", "save it as UTF-8"],
        prepare=write("settings.toml", "[server]\x23\xe4".encode("latin-1")),
    ),
    "settings that are a folder": Case(["serve", "--config", "{tmp}"], ["{tmp}: Is a directory; name a file"]),
    "settings that are not there": Case(CONFIG, ["{tmp}/settings.toml: No such file"]),
    "a path that is not text": Case(
        ["serve", "--set", "adapters.roots=/x/\udcff"], ["adapters.roots", "\\udcff", "UTF-8"]
    ),
    "a name that is too long": Case(["pull", "a" * 300], ["File name too long"]),
    "a host that does not resolve": Case(
        [*SERVE, "--host", "no-such-host.invalid", "--auth", "on"], ["'no-such-host.invalid' does not resolve"]
    ),
    "an address of another machine": Case([*SERVE, "--host", "192.0.2.1"], ["192.0.2.1", "ip addr"]),
    "an IPv6 address that is not here": Case([*SERVE, "--host", "2001:db8::1"], ["2001:db8::1", "ip addr"]),
    "the control plane at an address of another machine": Case(
        [*RUN_CONTROL, "--host", "192.0.2.1"], ["192.0.2.1", "ip addr"]
    ),
    "a port that takes rights": Case(
        [*RUN_CONTROL, "--port", "80"],
        ["cannot listen on 127.0.0.1:80", "set control.port to a higher one"],
        {"HOME": "/", "MANYLORA_MODEL_CACHE_DIR": "/nowhere"},
        user=NOBODY,
    ),
    "few open files": Case(
        ["RLIMIT_NOFILE", "64", *SERVE], ["64 files", "at least 128", "ulimit -n"], program=("-c", LIMITED)
    ),
    "output to a full disk": Case(["cost"], ["standard output cannot be written: No space left"], output="/dev/full"),
    "help to a full disk": Case(["--help"], ["standard output cannot be written"], output="/dev/full"),
    "the version to a full disk": Case(["--version"], ["standard output cannot be written"], output="/dev/full"),
}


@pytest.mark.parametrize("name", thinned(CASES, 6))
def test_what_the_system_refuses_is_one_sentence(name: str, base: Path, tmp_path: Path) -> None:
    case = CASES[name]
    if case.user is not None and os.geteuid() != 0:
        missing("only root can become another user")
    if "port that takes rights" in name and _lowest_free_port() <= 80:
        pytest.skip("this machine lets anyone listen on port 80")
    case.prepare(tmp_path)
    ended = run(case, base, tmp_path) if case.program or case.output else forked(case, base, tmp_path)
    _end_held()
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    line = ended.stderr.strip().splitlines()[-1]
    assert line.startswith("manylora: ")
    for part in case.said:
        assert filled(part, base, tmp_path) in line


@pytest.mark.parametrize("verb", ["serve", "control"])
def test_a_server_checks_settings_and_port_before_its_heavy_imports(verb: str, base: Path, tmp_path: Path) -> None:
    words = {"serve": SERVE, "control": RUN_CONTROL}[verb]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        case = Case([*words, "--port", port], [], program=("-X", "importtime", "-m", "manylora"))
        ended = run(case, base, tmp_path)
    assert f"manylora: port {port} on 127.0.0.1 is taken" in ended.stderr
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if "|" in line}
    assert "manylora.http.listener" in imported
    assert imported.isdisjoint({"torch", "fastapi", "sqlalchemy"})


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf[server]\nport = 1\n", b"[server]\r\nport = 1\r\n"])
def test_a_mark_of_utf_8_and_windows_lines_are_read(content: bytes, tmp_path: Path) -> None:
    from manylora.config.settings import load_config

    (tmp_path / "settings.toml").write_bytes(content)
    assert load_config(tmp_path / "settings.toml", environ={}).server.port == 1


@pytest.mark.parametrize("locale", ["xx_YY.UTF-8", *long("C", "de_DE.ISO-8859-1")])
@pytest.mark.parametrize("encoding", [None, "ascii"])
def test_no_locale_stops_a_command(locale: str, encoding: str | None, tmp_path: Path) -> None:
    environment = {"LC_ALL": locale, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    case = Case(["cost"], [], environment)
    ended = run(case, tmp_path, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "it breaks even at 880,000" in ended.stdout


def test_a_reader_that_has_left_is_no_failure(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ended = subprocess.run(
            [sys.executable, "-m", "manylora", "cost"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=child_environment(),
        )
    assert ended.stderr == ""


def run(case: Case, base: Path, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    with Path(case.output or tmp_path / "output").open("w+b") as output:
        ended = subprocess.run(
            [sys.executable, *(case.program or COMMAND), *(filled(word, base, tmp_path) for word in case.words)],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            env=environment_of(case, base, tmp_path),
            cwd=tmp_path,
            timeout=120,
        )
    printed = "" if case.output else (tmp_path / "output").read_text(errors="replace")
    return subprocess.CompletedProcess(ended.args, ended.returncode, printed, ended.stderr)


def forked(case: Case, base: Path, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    words = [filled(word, base, tmp_path) for word in case.words]
    return forks().run(words, folder=tmp_path, own_environment=environment_of(case, base, tmp_path), user=case.user)


def environment_of(case: Case, base: Path, tmp_path: Path) -> dict[str, str]:
    environment = child_environment()
    for name, value in case.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = filled(value, base, tmp_path)
    return environment


def filled(text: str, base: Path, tmp_path: Path) -> str:
    return text.replace("{tmp}", str(tmp_path)).replace("{base}", str(base))


def _end_held() -> None:
    while HELD:
        HELD.pop().close()


def _lowest_free_port() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
