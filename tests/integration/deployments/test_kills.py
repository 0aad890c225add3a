"""Kills around dedicated deployments: of a replica in a request, of the control plane, and of what is left alone."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.deployments.house import START_S, ended_replicas, family_of, house, server_of
from tests.integration.deployments.test_placed import require_one_bill
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long
KILLED = -signal.SIGKILL


def test_a_request_whose_replica_is_killed_ends_once_and_the_next_replica_answers(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        key = own.new_tenant("acme")
        own.deploy(key, "mine", minReplicas=1, maxReplicas=1)
        own.await_status(key, "mine", "ready")
        [(file, process)] = own.replicas().items()
        wait_for(lambda: bool(own.bills()), patience_s=60)
        family = family_of(process)
        with own.stream(key, tokens=3_000) as lines:
            events = [next(lines)]
            os.kill(process, signal.SIGKILL)
            events += [line for line in lines if line]
        told = [json.loads(line.removeprefix("data:")) for line in events if line.startswith("data:")]
        errors = [each for each in told if "error" in each or "code" in each]
        assert len(errors) == 1
        assert errors == told[-1:], "the error is the last event"
        wait_for(lambda: not any(each.runs for each in family), patience_s=60)
        wait_for(lambda: bool(set(own.replicas()) - {file}), patience_s=START_S)
        own.await_status(key, "mine", "ready")
        assert own.generate(key, "acme", "mine").status_code == 200
        wait_for(lambda: len([row for row in own.ledger() if row.seconds is None]) == 2, patience_s=60)
        rows = [row for row in own.ledger() if row.seconds is None]
        assert sorted(row.finish_reason for row in rows) == ["edge_lost", "length"]
        assert len({row.request_id for row in rows}) == 2
        require_one_bill(own)
        assert "manylora_deployment_failed_starts 1.0" in own.call("GET", "/metrics", key=own.admin).text


def test_a_replica_that_ends_soon_after_its_start_shows_why_and_comes_again(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        key = own.new_tenant("acme")
        own.deploy(key, "mine", minReplicas=1, maxReplicas=1)
        own.await_status(key, "mine", "ready")
        [process] = own.replicas().values()
        os.kill(process, signal.SIGKILL)
        shown = own.await_status(key, "mine", "errored")
        assert "its process ended with signal 9" in shown["statusDetail"]
        own.await_status(key, "mine", "ready")


def test_the_next_control_plane_keeps_the_replicas_of_a_killed_one(tmp_path: Path) -> None:
    with ended_replicas(tmp_path):
        with house(tmp_path, exit_code=KILLED) as own:
            admin, key = own.admin, own.new_tenant("acme")
            own.deploy(key, "mine", minReplicas=1, maxReplicas=1)
            own.await_status(key, "mine", "ready")
            before = own.replicas()
            wait_for(lambda: bool(own.bills()), patience_s=60)
            os.kill(server_of(tmp_path), signal.SIGKILL)
        assert own.replicas() == before, "they go on without it"
        with house(tmp_path, admin=admin) as own:
            shown = own.await_status(key, "mine", "ready")
            assert shown["currentReplicas"] == 1
            assert own.generate(key, "acme", "mine").status_code == 200
            assert own.replicas() == before
            last = max(end for _, end in own.bills())
            wait_for(lambda: max(end for _, end in own.bills()) > last, patience_s=60)
            require_one_bill(own)
            bills = own.bills()
            assert sum(end - begin for begin, end in bills) == bills[-1][1] - bills[0][0], "the bill has no gap"


def test_a_replica_that_no_control_plane_answers_ends_itself(tmp_path: Path) -> None:
    with ended_replicas(tmp_path), house(tmp_path, {"placement.orphan_s": 10}, exit_code=KILLED) as own:
        key = own.new_tenant("acme")
        own.deploy(key, "mine", minReplicas=1, maxReplicas=1)
        own.await_status(key, "mine", "ready")
        [process] = own.replicas().values()
        family = family_of(process)
        assert len(family) > 1, "a server and its engine"
        os.kill(server_of(tmp_path), signal.SIGKILL)
        wait_for(lambda: not any(each.runs for each in family), patience_s=START_S)
