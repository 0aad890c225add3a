"""Evaluations and promotions over HTTP: the batch that asks, its end, and who may pass by it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, select, update

from manylora.control.evaluations.promotions import ASKING_MS, MAX_UNDER_WAY, decide_all
from manylora.control.evaluations.questions import MAX_QUESTIONS, ReplyRule, is_right, read_questions
from manylora.control.storage.tables import batches, promotions
from manylora.control.stored.batches import change_batch
from manylora.control.stored.files import FilePart, append_to_file, publish_file, read_file
from manylora.control.stored.leases import BatchClaim, take_batches
from manylora.control.stored.objects import TenantStore
from manylora.control.tenants.audit import on_the_machine
from manylora.stored.batches import BatchChange, BatchStatus, TakeWish
from manylora.stored.files import Publication
from tests.control.plane import Plane, in_plane
from tests.control.rollouts.test_rules import ready_versions

Json = dict[str, Any]  # JSON values of several types
REPO = "/v2/repos/triage"
QUESTIONS: list[Json] = [{"prompt": "one", "expected": "1"}, {"prompt": "two", "expected": ["2", "II"]}]


def lines(questions: list[Json]) -> str:
    return "\n".join(map(json.dumps, questions))


async def attach(plane: Plane, key: str, **more: Any) -> Json:
    body = {"metric": "exact_match", "questions": lines(QUESTIONS), **more}
    reply = await plane.call("PUT", f"{REPO}/evaluation", body, key=key)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def promote(plane: Plane, key: str, version: int) -> Json:
    reply = await plane.call("POST", f"{REPO}/aliases/prod/promotions", {"version": version}, key=key)
    assert reply.status_code == 202, reply.text
    return dict(reply.json())


async def answer(plane: Plane, replies: dict[str, list[str]], failed: int = 0) -> list[Json]:
    """Run the waiting batch as an edge does: a reply for each version. Returns the lines that it asked."""
    store = TenantStore.of(plane.control)
    [turn] = await take_batches(store, TakeWish(edge="e", most=1))
    batch = turn.batch
    data = await read_file(store, batch.tenant, batch.input_id, 0, 1 << 20)
    asked = [json.loads(line) for line in data.splitlines()]
    results = []
    for line in asked:
        version, number = line["body"]["model"].rpartition("/")[2], int(line["custom_id"][-1])
        body = {"choices": [{"text": replies[version][number]}]}
        results.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
    claim = BatchClaim(batch=batch.id, lease=turn.lease)
    data = b"".join(json.dumps(each).encode() + b"\n" for each in results)
    await append_to_file(store, batch.tenant, batch.output_id, FilePart(start=0, data=data, claim=claim))
    order = Publication(name="o", purpose="batch_output", batch=batch.id, lease=turn.lease)
    await publish_file(store, batch.tenant, batch.output_id, order)
    batch.completed, batch.failed, batch.total = len(asked) - failed, failed, len(asked)
    await change_batch(store, BatchChange(batch=batch, lease=turn.lease, status=BatchStatus.COMPLETED, is_over=True))
    return asked


async def shown(plane: Plane, key: str, promotion: Json) -> Json:
    return dict((await plane.call("GET", f"{REPO}/promotions/{promotion['id']}", key=key)).json())


async def prod(plane: Plane, key: str) -> int | None:
    found = (await plane.call("GET", REPO, key=key)).json()["aliases"].get("prod")
    return None if found is None else int(found)


def test_a_version_gets_the_alias_if_its_score_is_not_lower(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 3)
        assert await attach(plane, key, guards=["prod"]) == {
            "repo": "triage",
            "metric": "exact_match",
            "count": 2,
            "guards": ["prod"],
            "maxTokens": 64,
        }
        first = await promote(plane, key, 1)
        assert (first["state"], first["current"], await prod(plane, key)) == ("running", None, None)
        asked = await answer(plane, {"1": ["1", "x"]})
        assert {line["body"]["model"] for line in asked} == {"pbase://acme/triage/1"}
        ended = await shown(plane, key, first)
        assert (ended["state"], ended["report"]["candidate"]["right"], await prod(plane, key)) == ("promoted", 1, 1)
        second = await promote(plane, key, 2)
        await answer(plane, {"1": ["1", "x"], "2": ["x", "x"]})
        refused = await shown(plane, key, second)
        assert (refused["state"], await prod(plane, key)) == ("refused", 1)
        assert refused["reason"] == "version 2 is right in 0 of 2, version 1 in 1"
        assert refused["report"]["candidate"] == {"version": 2, "right": 0, "total": 2, "wrong": [1, 2]}
        third = await promote(plane, key, 3)
        await answer(plane, {"1": ["1", "x"], "3": ["x", " II\n"]})
        await decide_all(TenantStore.of(plane.control), on_the_machine(plane.control))
        assert await prod(plane, key) == 3, "the periodic work decides without a look"
        listed = (await plane.call("GET", f"{REPO}/promotions", key=key)).json()["data"]
        assert {each["id"]: each["state"] for each in listed} == {
            first["id"]: "promoted",
            second["id"]: "refused",
            third["id"]: "promoted",
        }

    in_plane(url, tmp_path, scenario)


def test_of_two_promotions_at_once_the_second_must_compare_anew(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 3)
        await attach(plane, key)
        await plane.call("PUT", f"{REPO}/aliases/prod", {"version": 1}, key=key)
        better, worse = await promote(plane, key, 2), await promote(plane, key, 3)
        await answer(plane, {"1": ["x", "x"], "2": ["1", "2"], "3": ["1", "x"]})
        await answer(plane, {"1": ["x", "x"], "2": ["1", "2"], "3": ["1", "x"]})
        assert (await shown(plane, key, better))["state"] == "promoted"
        late = await shown(plane, key, worse)
        assert (late["state"], "has changed" in late["reason"], await prod(plane, key)) == ("failed", True, 2)

    in_plane(url, tmp_path, scenario)


def test_promotions_at_once_exceed_no_limit(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 1)
        await attach(plane, key)
        asked = [("POST", f"{REPO}/aliases/prod{number}/promotions", {"version": 1}) for number in range(7)]
        replies = await asyncio.gather(*(plane.call(*each, key=key) for each in asked))
        assert sorted(each.status_code for each in replies) == [202] * MAX_UNDER_WAY + [422] * 3
        async with plane.control.database.read() as connection:
            assert len((await connection.execute(select(batches.c.id))).all()) == MAX_UNDER_WAY

    in_plane(url, tmp_path, scenario)


def test_a_promotion_without_a_batch_fails_after_a_while(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 1)
        await attach(plane, key)
        begun = await promote(plane, key, 1)
        async with plane.control.database.write() as connection:  # a kill of the control plane came between
            await connection.execute(update(promotions).values(batch=""))
        assert (await shown(plane, key, begun))["state"] == "running"
        plane.clock.advance(ASKING_MS / 1000)
        late = await shown(plane, key, begun)
        assert (late["state"], "promote it again" in late["reason"]) == ("failed", True)

    in_plane(url, tmp_path, scenario)


def test_a_run_that_fails_says_why_and_promotes_nothing(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 1)
        await attach(plane, key)
        begun = await promote(plane, key, 1)
        await answer(plane, {"1": ["1", "2"]}, failed=1)
        ended = await shown(plane, key, begun)
        assert (ended["state"], ended["report"], await prod(plane, key)) == ("failed", None, None)
        assert "1 of 2 lines" in ended["reason"]
        await plane.call("POST", "/v2/repos", {"name": "other"}, key=key)
        elsewhere = await plane.call("GET", f"/v2/repos/other/promotions/{begun['id']}", key=key)
        assert (elsewhere.status_code, "other" in elsewhere.text) == (404, True), elsewhere.text
        gone = await promote(plane, key, 1)
        await answer(plane, {"1": ["1", "2"]})
        await plane.call("DELETE", f"{REPO}/version/1", key=key)
        assert "version `1`" in (await shown(plane, key, gone))["reason"]

    in_plane(url, tmp_path, scenario)


def test_stored_questions_that_a_later_rule_refuses_end_their_promotion(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 1)
        await attach(plane, key)
        begun = await promote(plane, key, 1)
        await answer(plane, {"1": ["1", "2"]})
        stored = json.dumps({"metric": "exact_match", "questions": '{"prompt": "a", "prompt": "b", "expected": "c"}'})
        async with plane.control.database.write() as connection:
            await connection.execute(update(promotions).values(evaluation=stored))
        ended = await shown(plane, key, begun)
        assert (ended["state"], "given twice" in ended["reason"]) == ("failed", True)

    in_plane(url, tmp_path, scenario)


def test_a_guarded_alias_has_no_other_way_but_the_operators(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 2)
        await plane.call("PUT", f"{REPO}/aliases/prod", {"version": 1}, key=key)
        await attach(plane, key, guards=["prod"])
        for body in ({"version": 2}, {"weights": {"1": 99, "2": 1}}):
            refused = await plane.call("PUT", f"{REPO}/aliases/prod", body, key=key)
            assert (refused.status_code, "guarded" in refused.text) == (422, True)
        upload = await plane.call("POST", "/v2/adapters/upload", {"repo": "triage", "alias": "prod"}, key=key)
        assert (upload.status_code, "guarded" in upload.text) == (422, True)
        assert (await plane.call("PUT", f"{REPO}/aliases/prod", {"version": 1}, key=key)).status_code == 200
        path = "/admin/repos/acme/triage/aliases/prod/promote"
        assert (await plane.call("POST", path, {"version": 2}, key=key)).status_code == 403
        forced = (await plane.call("POST", path, {"version": 2})).json()
        assert (forced["state"], forced["forced"], await prod(plane, key)) == ("promoted", True, 2)
        rows = (await plane.call("GET", "/v1/account/audit?limit=10", key=key)).json()["audit"]
        assert next(row["verb"] for row in rows if row["kind"] == "alias") == "force"
        back = await plane.call("POST", f"{REPO}/aliases/prod/rollback", key=key)
        assert (back.status_code, await prod(plane, key)) == (200, 1)

    in_plane(url, tmp_path, scenario)


NO_QUESTIONS: list[tuple[Json, str]] = [
    ({"metric": "bleu", "questions": lines(QUESTIONS)}, "metric"),
    ({"metric": "contains", "questions": ""}, "questions"),
    ({"metric": "contains", "questions": "{"}, "line 1"),
    ({"metric": "contains", "questions": lines([*QUESTIONS, {"prompt": "x"}])}, "line 3"),
    ({"metric": "contains", "questions": lines([{"prompt": "x", "expected": "1", "weight": 2}])}, "weight"),
    ({"metric": "contains", "questions": lines([{"prompt": "x", "messages": [], "expected": "1"}])}, "line 1"),
    ({"metric": "contains", "questions": lines([{"messages": [{"role": 1}], "expected": "1"}])}, "line 1"),
    (
        {
            "metric": "contains",
            "questions": lines([*QUESTIONS, {"messages": [{"role": "user", "content": "x"}], "expected": "1"}]),
        },
        "messages",
    ),
    ({"metric": "contains", "questions": lines(QUESTIONS[:1] * (MAX_QUESTIONS + 1))}, str(MAX_QUESTIONS)),
    ({"metric": "contains", "questions": lines(QUESTIONS), "maxTokens": 0}, "maxTokens"),
    ({"metric": "contains", "questions": lines(QUESTIONS), "guards": ["1"]}, "alias"),
    ({"metric": "contains", "questions": " \n\n"}, "1 to"),
    ({"metric": "contains", "questions": '{"prompt": "a", "expected": "1", "prompt": "b"}'}, "given twice"),
    ({"metric": "contains", "questions": lines([{"prompt": "x" * 2**20, "expected": "1"}])}, "questions"),
]


def test_questions_that_cannot_be_asked_are_refused(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await ready_versions(plane, 1)
        for body, named in NO_QUESTIONS:
            refused = await plane.call("PUT", f"{REPO}/evaluation", body, key=key)
            assert (refused.status_code, named in refused.text) == (422, True), refused.text
        none = await plane.call("POST", f"{REPO}/aliases/prod/promotions", {"version": 1}, key=key)
        assert none.status_code == 404
        async with plane.control.database.read() as connection:
            assert (await connection.execute(select(batches.c.id))).all() == []

    in_plane(url, tmp_path, scenario)


def test_only_a_line_feed_ends_a_question() -> None:
    texts = ["one\u2028line", "next\x85line", "cr"]
    questions = [json.dumps({"prompt": text, "expected": text}, ensure_ascii=False) for text in texts]
    _, found = read_questions("\r\n".join(questions))
    assert [question.asked for question in found] == texts


@pytest.mark.parametrize(
    ("rule", "reply", "right"),
    [
        (ReplyRule.EXACT_MATCH, " Yes\n", True),
        (ReplyRule.EXACT_MATCH, "yes", False),
        (ReplyRule.ACCURACY, "  YES  sir ", False),
        (ReplyRule.ACCURACY, " yEs ", True),
        (ReplyRule.CONTAINS, "Oh, Yes.", True),
        (ReplyRule.CONTAINS, "No", False),
    ],
)
def test_the_rules_of_replies(rule: ReplyRule, reply: str, right: bool) -> None:
    assert is_right(rule, reply, ["Yes"]) is right
