"""Runs in the environment of `instructor`, with a file of facts as its argument."""

from typing import Any, Literal

import instructor
from openai import NotFoundError, OpenAI
from pydantic import BaseModel

from tests.clients.scripts.cases import FACTS, case, raised, run_cases

ASKED: Any = [{"role": "user", "content": "Anna is 31 years old and lives in Rome. Who is she?"}]
connection = OpenAI(base_url=f"{FACTS['url']}/v1", api_key=FACTS["key"], max_retries=0)


class Person(BaseModel):
    """A person of whom a text tells."""

    name: str
    city: Literal["Rome", "Paris"]


def person(mode: instructor.Mode) -> Person:
    client = instructor.from_openai(connection, mode=mode)
    found = client.chat.completions.create(
        model=FACTS["base"], messages=ASKED, response_model=Person, max_tokens=200, temperature=0, max_retries=0
    )
    assert isinstance(found, Person)
    return found


@case
def json_of_a_schema_is_a_model() -> None:
    assert person(instructor.Mode.JSON_SCHEMA).city in ("Rome", "Paris")


@case
def a_tool_call_is_a_model() -> None:
    assert person(instructor.Mode.TOOLS).city in ("Rome", "Paris")


@case
def an_unknown_adapter_is_not_found() -> None:
    client = instructor.from_openai(connection, mode=instructor.Mode.JSON_SCHEMA)
    ask = client.chat.completions.create
    raised(
        Exception,
        lambda: ask(model="no-such-adapter", messages=ASKED, response_model=Person, max_retries=0),
        "does not exist",
    )
    raised(NotFoundError, lambda: connection.chat.completions.create(model="no-such-adapter", messages=ASKED))


if __name__ == "__main__":
    run_cases("instructor")
