"""Layer 0: settings, adapter references, clocks, counts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapter_ref import AdapterRef, SourceName, parse_adapter_ref
from manylora.clock import ManualClock
from manylora.config.environment import child_environment
from manylora.config.folders import cache_dir
from manylora.config.settings import leaves, load_config
from manylora.errors import AdapterReferenceInvalid, ConfigInvalid
from manylora.ids import mint_request_id, mint_seed
from manylora.usage import Counts

LOCAL = frozenset({SourceName.LOCAL})


def test_later_sources_of_settings_win(tmp_path: Path) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text('[server]\nport = 1\nhost = "h"\n[engine]\nmax_running = 3\n[adapters]\nroots = ["a", "b"]\n')
    config = load_config(file, {"server.port": 3}, {"MANYLORA_SERVER_PORT": "2", "MANYLORA_ENGINE_MAX_RUNNING": "4"})
    assert (config.server.port, config.server.host, config.engine.max_running) == (3, "h", 4)
    assert config.adapters.roots == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprt = 1\n", "unknown setting: server.prt"),
        ("port = 1\n", "must be a table"),
        ("[server]\nport = 'x'\n", "server.port: expected int, given 'x'"),
        ("[server]\nport = true\n", "server.port: expected int, given True"),
        ("[engine]\nmax_running = 0\n", "engine.max_running must be at least 1. Given: 0"),
        ("[engine]\nmax_model_len = 1\n", "engine.max_model_len must be 0 or at least 2. Given: 1"),
        ('[model]\nquantize = "int8"\nkernels = "onednn"\n', "model.kernels must be auto, native, torch"),
        ("[model]\ndevice = 'gpu'\n", "model.device must be auto, cpu, cuda or cuda:n. Given: 'gpu'"),
        (
            "[model]\ndevice = 'cuda:1'\nkernels = 'native'\n",
            "cuda:1 it must be one of auto, torch, triton",
        ),
        ("[model]\ndevice = 'cuda'\nmore_bases = ['b']\n", "model.device cuda serves one base"),
        ("[model]\ndevice = 'cuda:1'\ntensor_parallel = 2\n", "cuda:1 is one card: with several ranks"),
        ('[model]\nquantize = "int3"\n', "model.quantize must be one of none, int8, int4"),
        ("[engine]\nmax_step_tokens = 63\n", "engine.max_step_tokens must be at least engine.max_running (64)"),
        ("[server]\nport = 70000\n", "server.port must be at most 65535. Given: 70000"),
        ("[engine]\nmax_queue_s = nan\n", "engine.max_queue_s must be at least"),
        (
            "[model]\nkernels = 'gpu'\n",
            "model.kernels must be one of auto, native, native-bf16, reference, torch, triton. Given: gpu",
        ),
        ("[adapters]\npreload = ['../a']\n", "adapters.preload: `adapter_id` must be a name"),
        ("[adapters]\npinned = ['ftp://a']\n", "adapters.pinned: `adapter_source` must be one of"),
        ("[adapters]\nidle_ttl_s = -1\n", "adapters.idle_ttl_s must be at least 0. Given: -1"),
        ("[server", "cannot read the configuration file"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "manylora.toml"
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as raised:
        load_config(file, environ={})
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MANYLORA_SERVER_PRT", "1"), ("MANYLORA_SERVER_PORT", "x"), ("MANYLORA_ENGINE_PREFIX_CACHE", "maybe")],
)
def test_a_wrong_variable_is_refused(variable: str, value: str) -> None:
    with pytest.raises(ConfigInvalid):
        load_config(environ={variable: value})


SERVICES = {
    # a Service named `manylora`, with a named port
    "MANYLORA_SERVICE_HOST": "10.0.0.7",
    "MANYLORA_SERVICE_PORT": "8080",
    "MANYLORA_SERVICE_PORT_HTTP": "8080",
    "MANYLORA_PORT": "tcp://10.0.0.7:8080",
    "MANYLORA_PORT_8080_TCP": "tcp://10.0.0.7:8080",
    "MANYLORA_PORT_8080_TCP_PROTO": "tcp",
    "MANYLORA_PORT_8080_TCP_PORT": "8080",
    "MANYLORA_PORT_8080_TCP_ADDR": "10.0.0.7",
    # Services named `manylora-server` and `manylora-control`: two of these are names of settings
    "MANYLORA_SERVER_SERVICE_HOST": "fd00::7",
    "MANYLORA_SERVER_SERVICE_PORT": "8080",
    "MANYLORA_SERVER_PORT": "tcp://[fd00::7]:8080",
    "MANYLORA_SERVER_PORT_53_UDP_ADDR": "10.0.0.7",
    "MANYLORA_CONTROL_PORT": "tcp://10.0.0.8:8090",
    "MANYLORA_CONTROL_PORT_8090_TCP": "tcp://10.0.0.8:8090",
}


def test_variables_that_kubernetes_makes_are_ignored_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(environ={**SERVICES, "MANYLORA_ENGINE_MAX_RUNNING": "7"})
    assert config == load_config(flags={"engine.max_running": 7}, environ={})
    (line,) = caplog.messages
    assert all(name in line for name in SERVICES)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MANYLORA_SERVICE_HOST", "not an address"),
        ("MANYLORA_SERVICE_PORT", "x"),
        ("MANYLORA_SERVICE_PROT", "8080"),
        ("MANYLORA_PORT", "8080"),
        ("MANYLORA_SERVER_SERVICE_HOST_NAME", "10.0.0.7"),
        ("MANYLORA_SERVER_PORTS", "tcp://10.0.0.7:8080"),
        ("MANYLORA_ENGINE_MAX_RUNNING", "tcp://10.0.0.7:8080"),
    ],
)
def test_what_only_looks_like_one_stays_an_error(variable: str, value: str) -> None:
    with pytest.raises(ConfigInvalid):
        load_config(environ={variable: value})


def test_every_kind_of_setting_can_be_given_as_text() -> None:
    config = load_config(
        environ={
            "MANYLORA_ADAPTERS_ROOTS": "a:b",
            "MANYLORA_ADAPTERS_PINNED": "team/a, hub://org/b",
            "MANYLORA_ADAPTERS_PRELOAD": "a",
            "MANYLORA_ENGINE_PREFIX_CACHE": "false",
            "MANYLORA_ENGINE_MAX_QUEUE_S": "1.5",
        }
    )
    assert leaves(config)["adapters.roots"] == ("a", "b")
    assert (config.adapters.pinned, config.adapters.preload) == (("team/a", "hub://org/b"), ("a",))
    assert config.engine.prefix_cache is False
    assert config.engine.max_queue_s == 1.5


def test_the_cache_directory_can_be_named() -> None:
    assert cache_dir(load_config(flags={"model.cache_dir": "/x"}, environ={})) == Path("/x")


def test_children_get_threads_that_sleep() -> None:
    assert child_environment()["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("name", ["support-triage", "team/name", "team/name@v1.2", "a+b_c", "team/name/"])
def test_names_of_adapters(name: str) -> None:
    assert parse_adapter_ref(name, None, LOCAL) == AdapterRef(SourceName.LOCAL, name.rstrip("/"))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../b", "a//b", "a\x00b", "", ".hidden", "a\\b", "x" * 257, "a b", "ü"]
)
def test_what_is_no_name_of_an_adapter(name: str) -> None:
    with pytest.raises(AdapterReferenceInvalid):
        parse_adapter_ref(name, "local", LOCAL)


def test_a_source_that_is_off_is_refused_with_those_that_are_on() -> None:
    with pytest.raises(AdapterReferenceInvalid, match=r"must be one of local\. Given: s3"):
        parse_adapter_ref("x", "s3", LOCAL)


@given(st.text(max_size=300))
def test_no_name_leaves_its_root(name: str) -> None:
    try:
        ref = parse_adapter_ref(name, None, LOCAL)
    except AdapterReferenceInvalid:
        return
    root = Path("/root/of/adapters")
    assert root in (root / ref.id).resolve().parents


def test_a_manual_clock_moves_only_forward() -> None:
    clock = ManualClock()
    before = clock.monotonic_s()
    clock.sleep_s(2.5)
    assert clock.monotonic_s() == before + 2.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_minted_values() -> None:
    assert len({mint_request_id() for _ in range(100)}) == 100
    assert all(0 <= mint_seed() < 2**53 for _ in range(100))


def test_totals_are_sums() -> None:
    assert Counts(prompt_tokens=3, cached_tokens=2, completion_tokens=4).total_tokens == 7
