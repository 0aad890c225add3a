"""A dedicated deployment on a real server: it runs, answers, bills its seconds, sleeps, wakes and ends."""

import itertools
from pathlib import Path

import pytest

from tests.integration.deployments.house import House, house
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long


def test_a_deployment_runs_answers_bills_and_ends(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        key, other = own.new_tenant("acme"), own.new_tenant("other")
        made = own.deploy(key, "mine", minReplicas=1, maxReplicas=1)
        assert made.status_code == 200, made.text
        shown = own.await_status(key, "mine", "ready", "errored")
        assert (shown["status"], shown["currentReplicas"]) == ("ready", 1), shown
        assert shown["lastStartSeconds"] > 0
        reply = own.generate(key, "acme", "mine")
        assert reply.status_code == 200, reply.text
        refused = own.generate(other, "acme", "mine")
        assert (refused.status_code, refused.json()["code"]) == (403, "tenant_mismatch")
        wait_for(lambda: own.shown(key)["billed"]["seconds"] >= 2, patience_s=60)
        assert own.call("DELETE", "/v2/deployments/mine", key=key).status_code == 204
        wait_for(lambda: not own.replicas(), patience_s=60)
        require_one_bill(own)
        [row] = [row for row in own.ledger() if row.seconds is None]
        assert (row.deployment, row.completion_tokens, row.cost_nanousd) == ("mine", 4, 0)
        spent = sum(row.cost_nanousd for row in own.ledger())
        month = own.call("GET", "/v1/account/usage", key=key).json()["begin"][:7]
        invoice = own.call("GET", f"/v1/account/invoices/{month}", key=key).json()
        assert spent in {line["nanousd"] for line in invoice["lines"]}
        metrics = own.call("GET", "/metrics", key=own.admin).text
        assert "manylora_deployment_starts 1.0" in metrics


def test_it_sleeps_after_its_cooldown_and_a_request_wakes_it(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        key = own.new_tenant("acme")
        assert own.deploy(key, "mine", minReplicas=0, maxReplicas=1, cooldownTime=2).status_code == 200
        own.await_status(key, "mine", "standby")
        assert own.replicas() == {}
        for _ in range(2):
            reply = own.generate(key, "acme", "mine")
            assert reply.status_code == 200, reply.text
            assert int(reply.headers["x-deployment-wait-time"]) > 0
            own.await_status(key, "mine", "standby")
            wait_for(lambda: not own.replicas(), patience_s=60)
        require_one_bill(own)
        metrics = own.call("GET", "/metrics", key=own.admin).text
        assert "manylora_deployment_wait_seconds_count 2.0" in metrics
        assert "manylora_deployment_starts 2.0" in metrics
        assert "manylora_deployment_failed_starts 0.0" in metrics


def require_one_bill(own: House) -> None:
    """Require that no second is in two bills."""
    bills = own.bills()
    assert bills
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(bills)), bills
