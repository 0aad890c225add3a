"""The soak: each of its instruments finds what it is for, and the two-minute run holds."""

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.soak.left import left_in_database, left_in_folders
from benchmarks.soak.run import IDLE_GAUGES, Plan, run_soak
from benchmarks.soak.samples import grown
from benchmarks.soak.slope import BLOCKS, in_blocks, slope_of

from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.bench.processes import held, open_files, processes_below
from manylora.bench.servers import fresh_cache
from manylora.server.observability.metric_table import LORAX_METRICS, MANYLORA_METRICS
from tests.control.plane import migrated_in

Series = list[tuple[float, float]]


def noisy(per_s: float, *, seed: int, begin_s: float = 0.0, count: int = 200) -> Series:
    chance = random.Random(seed)
    return [(begin_s + at, 1e6 + per_s * at + chance.gauss(0.0, 1e4)) for at in range(count)]


def test_a_flat_series_is_flat_and_a_leak_of_noise_size_is_not() -> None:
    flat, leak = slope_of([noisy(0.0, seed=1)]), slope_of([noisy(500.0, seed=2)])
    assert flat.is_flat
    assert flat.low_per_s < 0.0 < flat.high_per_s
    assert not leak.is_flat
    assert leak.low_per_s < 500.0 < leak.high_per_s


def test_a_step_between_processes_is_no_growth() -> None:
    first, second = noisy(0.0, seed=3), [(at, value + 1e6) for at, value in noisy(0.0, seed=4, begin_s=300.0)]
    assert slope_of([first, second]).is_flat
    assert not slope_of([[*first, *second]]).is_flat


def test_a_single_outlier_does_not_move_a_slope() -> None:
    series = noisy(0.0, seed=5)
    series[-1] = (series[-1][0], 1e9)
    assert slope_of([series]).is_flat
    assert len(in_blocks(series)) <= BLOCKS


def test_a_slope_needs_two_moments() -> None:
    with pytest.raises(ValueError, match="two samples"):
        slope_of([[(1.0, 2.0)], []])


def test_an_open_file_a_socket_a_thread_and_a_child_are_found(tmp_path: Path) -> None:
    code = (
        "import socket, sys, threading\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"kept = [open({str(tmp_path / 'leak')!r}, 'w'), socket.socket()]\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('done', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as leaking:
        assert leaking.stdin is not None
        assert leaking.stdout is not None
        assert leaking.stdout.readline() == "ready\n"
        before = held([leaking.pid])
        leaking.stdin.write("\n")
        leaking.stdin.flush()
        assert leaking.stdout.readline() == "done\n"
        after = held([leaking.pid])
        assert grown(before, after) == {"threads": 1, "files": 2, "sockets": 1}
        assert open_files([leaking.pid])[str(tmp_path / "leak")] == 1
        assert leaking.pid in processes_below(os.getpid())
        assert grown(after, before) == {}
        leaking.stdin.close()


def test_rows_and_folders_that_are_of_no_use_are_found(tmp_path: Path) -> None:
    migrated_in(tmp_path / "control")
    (tmp_path / "control" / "uploads" / "t0" / "own" / "1").mkdir(parents=True)
    assert left_in_database(tmp_path) == []
    assert left_in_folders(tmp_path) == []
    with closing(sqlite3.connect(tmp_path / "control" / "control.db")) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute(
            "INSERT INTO leases (edge, tenant, key, granted_nanousd, expires_ms) VALUES ('e', 't', '', 1, 1)"
        )
        connection.execute("INSERT INTO aliases (repository, name, version) VALUES (1, 'prod', 7)")
    assert left_in_database(tmp_path) == [
        "1 leases of edges that have stopped",
        "1 aliases of versions that are not there",
    ]
    (tmp_path / "control" / "uploads" / "t0" / "own" / "1" / "adapter_model.safetensors").touch()
    assert left_in_folders(tmp_path) == ["1 folders of uploads for 0 versions"]


def test_the_gauges_of_silence_are_gauges() -> None:
    kinds = {metric.name: metric.kind.value for metric in (*LORAX_METRICS, *MANYLORA_METRICS)}
    assert {kinds[name] for name in IDLE_GAUGES} == {"gauge"}


@pytest.mark.long  # two minutes
@pytest.mark.timeout(900)
def test_two_minutes_of_all_traffic_leave_nothing_behind(tmp_path: Path) -> None:
    plan = Plan(seconds=120.0, warm_up_s=24.0, kill_every_s=60.0, sample_every_s=1.0)
    base = write_tiny_base(tmp_path / "tiny")
    settings = (
        f"adapters.bank_bytes={1 << 20}",
        f"adapters.host_bytes={1 << 20}",
        f"model.cache_dir={fresh_cache(tmp_path)}",
        "model.threads=1",
    )
    found = run_soak(tmp_path, base, replace(plan, seed=3), settings=settings)
    assert found.faults == []
    assert found.kills == 1
    assert found.verdict is not None
    assert found.verdict.difference == 0
    assert {"upload", "alias", "delete", "pin", "read"} <= found.traffic["done"].keys()
    assert found.traffic["statuses"][200] > 100
    assert found.traffic["whole"] < found.traffic["requests"]  # some clients left
