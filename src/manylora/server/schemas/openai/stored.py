"""The body of POST /v1/batches, and the replies of the routes of files and batches."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo
from typing_extensions import TypedDict

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Read, wrong_type
from manylora.server.schemas.readers import count_within, name_of, object_of, text

WINDOW = "24h"
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3_600, 2_592_000
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""The bounds of `metadata`: its pairs, and the characters of a key and of a value."""

Metadata = Mapping[str, str]


def read_metadata(value: object, info: ValidationInfo) -> dict[str, str]:
    """Read OpenAI's `metadata`. Raises `InvalidParameter`."""
    name = name_of(info)
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    if len(value) > MAX_PAIRS:
        raise InvalidParameter(f"`{name}` may have at most {MAX_PAIRS} pairs. Given: {len(value)}", parameter=name)
    for key, each in value.items():
        if not isinstance(each, str):
            raise wrong_type(f"{name}.{key[:MAX_KEY]}", "a string", each)
        if len(key) > MAX_KEY or len(each) > MAX_VALUE:
            raise InvalidParameter(
                f"`{name}`: a key may have at most {MAX_KEY} characters, and a value {MAX_VALUE}", parameter=name
            )
    return {str(key): str(each) for key, each in value.items()}


MetadataField = Annotated[
    dict[str, str] | None,
    Read(read_metadata, shape=dict[str, str] | None),
    Field(description=f"At most {MAX_PAIRS} pairs of texts, which come back unchanged."),
]


def _anchor(value: object, info: ValidationInfo) -> str:
    if (found := text(value, info)) != "created_at":
        raise InvalidParameter(f"`{name_of(info)}` must be created_at. Given: {found[:40]!r}", parameter=name_of(info))
    return found


class Lifetime(Body):
    """The time after which a file is deleted."""

    place: ClassVar[str] = "output_expires_after"
    required: ClassVar[tuple[str, ...]] = ("anchor", "seconds")
    anchor: Annotated[str, Read(_anchor, enum=["created_at"])] = Field(default="", validate_default=True)
    seconds: Annotated[
        int,
        Read(
            count_within(SHORTEST_LIFE_S, lambda _: LONGEST_LIFE_S),
            "integer",
            minimum=SHORTEST_LIFE_S,
            maximum=LONGEST_LIFE_S,
        ),
    ] = Field(default=0, validate_default=True)


def _window(value: object, info: ValidationInfo) -> str:
    if text(value, info) != WINDOW:
        raise InvalidParameter(f"`completion_window` must be {WINDOW}. Given: {value!r}"[:200], parameter=name_of(info))
    return WINDOW


def _required(value: object, info: ValidationInfo) -> str:
    if value is None:
        raise InvalidParameter(f"`{name_of(info)}` is missing", parameter=name_of(info))
    return text(value, info)


class BatchBody(Body):
    """The body of POST /v1/batches."""

    required: ClassVar[tuple[str, ...]] = ("input_file_id", "endpoint", "completion_window")
    input_file_id: Annotated[str, Read(_required, "string"), Field(description="A file of the purpose `batch`.")] = (
        Field(default=None, validate_default=True)
    )
    endpoint: Annotated[str, Read(_required, "string"), Field(description="The route of every line.")] = Field(
        default=None, validate_default=True
    )
    completion_window: Annotated[str, Read(_window, enum=[WINDOW])] = Field(default="", validate_default=True)
    metadata: MetadataField = None
    output_expires_after: Annotated[Lifetime | None, Read(object_of(Lifetime), shape=Lifetime | None)] = None


class FileReply(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class FilePage(TypedDict):
    """One page of files."""

    object: Literal["list"]
    data: list[FileReply]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedReply(TypedDict):
    """The deletion of a file or a response."""

    id: str
    object: str
    deleted: Literal[True]


class LineErrorReply(TypedDict):
    """The error of one line of the input, or of the whole input."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(TypedDict):
    """The errors of the input."""

    object: Literal["list"]
    data: list[LineErrorReply]


class LineCounts(TypedDict):
    """The lines of a batch: all, those with a result, and those with an error."""

    total: int
    completed: int
    failed: int


class BatchReply(TypedDict):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: LineCounts
    metadata: Metadata | None


class BatchPage(TypedDict):
    """One page of batches."""

    object: Literal["list"]
    data: list[BatchReply]
    first_id: str | None
    last_id: str | None
    has_more: bool
