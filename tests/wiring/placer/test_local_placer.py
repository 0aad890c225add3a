"""The placer on the machine of the control plane: its plans, the settings of replicas, and their processes."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.config.settings import load_config
from manylora.control.billing.heavy_read_client import HeavyReads
from manylora.control.deployments.placer import Options, StartOrder
from manylora.control.deployments.replicas import Sight
from manylora.control.storage.database import database_url
from manylora.errors import InvalidParameter
from manylora.server.http.context import Receive, Scope, Send
from manylora.server.metering.sent_mark import mark_sent
from manylora.wiring.placer.local_placer import LocalPlacer, _toml
from tests.control.plane import new_control
from tests.server.dedicated.house import Watched, served
from tests.support.waiting import wait_for

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WAITS = "import sys; print(flush=True); sys.stdin.read()"


def write_base(folder: Path, **changes: Any) -> Path:
    """A base's shape; the plan reads no weight."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SHAPE, **changes}))
    return folder


def placer_in(folder: Path, **settings: Any) -> LocalPlacer:
    base = write_base(folder / "base")
    flags = {"model.base": str(base), "control.dir": str(folder), "model.cache_dir": str(folder / "cache"), **settings}
    config = load_config(flags=flags, environ={})
    url = database_url("", folder)
    control = new_control(url, folder, config, ManualClock(), HeavyReads(None), is_key_needed=True)
    return LocalPlacer(control, "http://127.0.0.1:1")


def order(name: str = "order", **options: Any) -> StartOrder:
    return StartOrder(id=name, place="slot", tenant="acme", name="mine", options=Options(base="base", **options))


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose command line is that of a replica, as an earlier control plane has left it."""
    file = tmp_path / "placements" / "slot" / "order.toml"
    file.parent.mkdir(parents=True)
    file.touch()
    command = [sys.executable, "-S", "-c", WAITS, "serve", str(file.resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


# ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_follows_the_files_of_its_base(tmp_path: Path) -> None:
    placer = placer_in(tmp_path)
    before = placer.needed_bytes(Options(base="base"))
    write_base(tmp_path / "base", num_hidden_layers=200)
    after = placer.needed_bytes(Options(base="base"))
    assert after > before
    assert placer.needed_bytes(Options(base="base", quantize="int8")) != after


def test_a_plan_names_a_base_that_is_not_here_and_one_that_does_not_fit(tmp_path: Path) -> None:
    placer = placer_in(tmp_path, **{"placement.memory_bytes": 600 << 20})
    with pytest.raises(InvalidParameter, match="some/other") as unknown:
        placer.needed_bytes(Options(base="some/other"))
    assert unknown.value.parameter == "config.baseModel"
    write_base(tmp_path / "base", num_hidden_layers=4_000, hidden_size=1_024)
    with pytest.raises(InvalidParameter, match=r"base in 600\.0 MiB for all replicas"):
        placer.needed_bytes(Options(base="base"))


def test_the_settings_may_fix_the_memory(tmp_path: Path) -> None:
    placer = placer_in(tmp_path, **{"placement.replica_bytes": 1 << 30, "placement.memory_bytes": 5 << 30})
    assert (placer.needed_bytes(Options(base="not here")), placer.total_bytes()) == (1 << 30, 5 << 30)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_replica_has_its_own_settings_and_those_of_its_control_plane(tmp_path: Path) -> None:
    kept = {"adapters.max_rank": 32, "server.drain_s": 7.0, "placement.replica_bytes": 1 << 30}
    placer = placer_in(tmp_path, **kept)
    wanted = order(max_model_len=128, quantize="int8")
    folder = tmp_path / "placements" / "slot"
    values = placer._values(wanted, folder, "127.0.0.1", 4_321)
    file = tmp_path / "replica.toml"
    file.write_text(_toml(values))
    config = load_config(file=file, environ={})
    assert (config.adapters.max_rank, config.server.drain_s) == (32, 7.0)
    assert (config.model.base, config.model.quantize) == (str(tmp_path / "base"), "int8")
    assert (config.engine.max_model_len, config.engine.memory_bytes) == (128, 1 << 30)
    assert (config.control.url, config.control.deployment) == ("http://127.0.0.1:1", "acme/mine")
    assert (config.server.host, config.server.port) == ("127.0.0.1", 4_321)
    assert (config.placement.placer, config.control.dir) == ("off", load_config(environ={}).control.dir)


def test_the_folder_of_a_placer_has_its_name_for_ever(tmp_path: Path) -> None:
    assert placer_in(tmp_path).id == placer_in(tmp_path).id
    (tmp_path / "other").mkdir()
    assert placer_in(tmp_path / "other").id != placer_in(tmp_path).id


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_placer_adopts_the_processes_of_the_one_before(tmp_path: Path, waiting: "subprocess.Popen[bytes]") -> None:
    async def scenario() -> None:
        placer = placer_in(tmp_path)
        assert await placer.sight("order", "") == (Sight.SILENT, "")
        assert await placer.sight("another", "") == (Sight.GONE, "its process is gone")
        assert await placer.sweep({"order"}) == 0
        await placer.drain("order")
        assert waiting.wait() == -signal.SIGTERM
        assert await placer.sight("order", "") == (Sight.GONE, "its process is gone")
        await placer.drain("order")  # no error
        await placer.close()

    asyncio.run(scenario())


def test_a_process_of_no_row_is_killed(tmp_path: Path, waiting: "subprocess.Popen[bytes]") -> None:
    async def scenario() -> None:
        placer = placer_in(tmp_path)
        assert await placer.sweep(()) == 1
        assert waiting.wait() == -signal.SIGKILL

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "is_sent", "is_kept"), [(0, True, False), (0, False, True), (3, True, True)])
def test_a_folder_goes_once_all_of_its_usage_is_sent(tmp_path: Path, code: int, is_sent: bool, is_kept: bool) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code})"]) as child:
        child.wait()

    async def scenario() -> None:
        placer = placer_in(tmp_path)
        folder = tmp_path / "placements" / "slot"
        edge = folder / "metering" / "0"
        edge.mkdir(parents=True)
        (folder / "log").write_text("first\nlast words\n")
        if is_sent:
            mark_sent(edge)
        placer._children["order"], placer._places["order"] = child, folder
        sight, words = await placer.sight("order", "")
        assert (sight, folder.exists()) == (Sight.GONE, is_kept)
        assert words == f"its process ended with exit code {code}" + (": last words" if code else "")

    asyncio.run(scenario())


def test_looks_at_a_replica_share_one_connection(tmp_path: Path, waiting: "subprocess.Popen[bytes]") -> None:
    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def scenario() -> None:
        placer, app = placer_in(tmp_path), Watched(health)
        async with served(app) as url:
            for _ in range(3):
                assert await placer.sight("order", url) == (Sight.WELL, "")
            await placer.close()
        assert await placer_in(tmp_path).sight("order", url) == (Sight.SILENT, ""), "nothing listens there"
        assert len(app.requests) == 3
        assert len({request["client"] for request in app.requests}) == 1

    asyncio.run(scenario())


@pytest.mark.long
def test_a_replica_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        placer = placer_in(tmp_path, **{"placement.replica_bytes": 1 << 30})
        (tmp_path / "base" / "config.json").unlink()
        url = await placer.start(order())
        assert url.startswith("http://127.0.0.1:")
        file = tmp_path / "placements" / "slot" / "order.toml"
        assert file.stat().st_mode & 0o077 == 0, "it has the token of edges"
        await asyncio.to_thread(wait_for, lambda: placer._process_of("order") is None, 60)
        sight, words = await placer.sight("order", url)
        assert sight is Sight.GONE
        assert words.startswith("its process ended with exit code")
        assert str(tmp_path / "base") in words
        assert not file.exists()

    asyncio.run(scenario())
