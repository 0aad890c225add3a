"""The fields that constrain the text to a form: `response_format` of both dialects, and vLLM's names for the same."""

import json
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.models.text.grammar import (
    FLEXIBLE,
    GrammarSource,
    choice_grammar,
    json_grammar,
    json_object_grammar,
    lark_grammar,
    regex_grammar,
    with_whitespace,
)
from manylora.server.schemas.body import Body, Read, wrong_type
from manylora.server.schemas.field_rules import FieldRules, Refusal, not_built
from manylora.server.schemas.readers import Text, array, flag, name_of, object_of, text

FORMATS = ("text", "json_object", "json_schema")


def _any(value: object, _: ValidationInfo) -> object:
    return value


JsonSchema = Annotated[Any, Read(_any, shape=dict[str, Any] | None)]


class JsonSchemaFormat(Body):
    """The object `json_schema` of a `response_format`, as OpenAI has it."""

    place: ClassVar[str] = "response_format.json_schema"
    name: Text = None
    description: Text = None
    schema_: JsonSchema = Field(default=None, alias="schema", description="The JSON schema of the text.")
    strict: Annotated[
        bool | None, Read(flag, "boolean"), Field(description="Either value holds: the schema is always enforced.")
    ] = None


class ResponseFormat(Body):
    """The object `response_format`."""

    place: ClassVar[str] = "response_format"
    rules: ClassVar[FieldRules] = FieldRules(hints={"value": "use `schema`", "strict": "it belongs in `json_schema`"})
    required: ClassVar[tuple[str, ...]] = ("type",)
    type: Annotated[str | None, Read(text, "string"), Field(description="`text`, `json_object` or `json_schema`.")] = (
        None
    )
    schema_: JsonSchema = Field(
        default=None, alias="schema", description="The JSON schema of the text, as LoRAX has it; default: any object."
    )
    json_schema: Annotated[
        JsonSchemaFormat | None, Read(object_of(JsonSchemaFormat), shape=JsonSchemaFormat | None)
    ] = None


def _response_format(value: object, info: ValidationInfo) -> GrammarSource | None:
    if not isinstance(value, dict):
        raise wrong_type(name_of(info), "an object", value)
    read = ResponseFormat.model_validate(value, context=info.context)
    kind = {"jsonobject": "json_object", "jsonschema": "json_schema"}.get((read.type or "").lower(), read.type or "")
    if kind.lower() not in FORMATS:
        raise not_built("response_format", f"`type` is one of {', '.join(FORMATS)}")
    inner = None if read.json_schema is None else read.json_schema.schema_
    given = [schema for schema in (read.schema_, inner) if schema is not None]
    if kind.lower() == "text":
        if given:
            raise InvalidParameter("`response_format`: `text` takes no `schema`", parameter="response_format")
        return None
    if len(given) > 1:
        raise InvalidParameter(
            "`response_format` has two schemas: `schema` and `json_schema.schema`", parameter="response_format"
        )
    return json_grammar(given[0]) if given else json_object_grammar()


def _json(value: object, info: ValidationInfo) -> GrammarSource:
    """Read a JSON schema, which may be given as text."""
    return _read_json(value, name_of(info).rstrip("_"))


def _read_json(value: object, field: str) -> GrammarSource:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"`{field}`: expected a JSON schema", parameter=field) from error
    return json_grammar(value, field=field)


def _regex(value: object, info: ValidationInfo) -> GrammarSource | None:
    return regex_grammar(pattern, field=name_of(info)) if (pattern := text(value, info)) else None


def _choice(value: object, info: ValidationInfo) -> GrammarSource | None:
    given = array(name_of(info), value)
    choices = [choice for choice in given if isinstance(choice, str)]
    if len(choices) < len(given):
        raise wrong_type(name_of(info), "an array of strings", value)
    return choice_grammar(choices, field=name_of(info)) if choices else None


def _lark(value: object, info: ValidationInfo) -> GrammarSource | None:
    return lark_grammar(written, field=name_of(info)) if (written := text(value, info)) else None


def _json_object(value: object, info: ValidationInfo) -> GrammarSource | None:
    return json_object_grammar(field=name_of(info)) if flag(value, info) else None


Grammar = GrammarSource | None
Format = Annotated[
    Grammar,
    Read(_response_format, shape=ResponseFormat | None),
    Field(description="The form of the text: JSON, maybe by a schema."),
]
GuidedJson = Annotated[
    Grammar, Read(_json, shape=dict[str, Any] | str | None), Field(description="The JSON schema of the text.")
]
GuidedRegex = Annotated[Grammar, Read(_regex, "string"), Field(description="A regular expression of the whole text.")]
GuidedChoice = Annotated[Grammar, Read(_choice, shape=list[str] | None), Field(description="The possible texts.")]
GuidedGrammar = Annotated[Grammar, Read(_lark, "string"), Field(description="A grammar in Lark's notation or GBNF.")]
GuidedObject = Annotated[
    Grammar, Read(_json_object, "boolean"), Field(description="If true, the text is a JSON object.")
]
WhiteSpace = Annotated[
    str | None,
    Read(text, "string"),
    Field(description="A regular expression of the white space in JSON; default: none."),
]


class StructuredOutputs(Body):
    """The object `structured_outputs`, as vLLM has it: exactly one form of the text."""

    place: ClassVar[str] = "structured_outputs"
    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"disable_fallback"}),
        refused={
            "structural_tag": Refusal(),
            "disable_additional_properties": Refusal("a schema says it by `additionalProperties`"),
        },
    )
    json_: GuidedJson = Field(default=None, alias="json")
    regex: GuidedRegex = None
    choice: GuidedChoice = None
    grammar: GuidedGrammar = None
    json_object: GuidedObject = None
    whitespace_pattern: WhiteSpace = None
    disable_any_whitespace: Annotated[
        bool | None, Read(flag, "boolean"), Field(description="False allows white space in JSON; default true.")
    ] = None


def _structured_outputs(value: object, info: ValidationInfo) -> GrammarSource | None:
    if not isinstance(value, dict):
        raise wrong_type(name_of(info), "an object", value)
    read = StructuredOutputs.model_validate(value, context=info.context)
    forms = {"json": read.json_, "regex": read.regex, "choice": read.choice, "grammar": read.grammar}
    found = _one_of({**forms, "json_object": read.json_object}, place="structured_outputs.")
    pattern = read.whitespace_pattern or (FLEXIBLE if read.disable_any_whitespace is False else "")
    if found is None or not pattern:
        return found
    return with_whitespace(found, pattern, field="structured_outputs.whitespace_pattern")


Structured = Annotated[
    Grammar,
    Read(_structured_outputs, shape=StructuredOutputs | None),
    Field(description="The form of the text, under vLLM's names."),
]


class HasGrammar(Protocol):
    """The model of a body with the fields that constrain the text."""

    @property
    def response_format(self) -> Grammar: ...
    @property
    def structured_outputs(self) -> Grammar: ...
    @property
    def guided_json(self) -> Grammar: ...
    @property
    def guided_regex(self) -> Grammar: ...
    @property
    def guided_choice(self) -> Grammar: ...
    @property
    def guided_grammar(self) -> Grammar: ...
    @property
    def guided_json_object(self) -> Grammar: ...
    @property
    def guided_whitespace_pattern(self) -> str | None: ...


_FORMS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def grammar_of(body: HasGrammar) -> Grammar:
    """Return the form of the text that a body asks for; None: any text. Raises `InvalidParameter` for two forms."""
    found = _one_of({name: getattr(body, name) for name in (*_FORMS, "guided_json_object")})
    if not body.guided_whitespace_pattern:
        return found
    return with_whitespace(found, body.guided_whitespace_pattern, field="guided_whitespace_pattern")


def _one_of(forms: dict[str, Grammar], place: str = "") -> Grammar:
    given = [(name, form) for name, form in forms.items() if form is not None]
    if len(given) > 1:
        raise InvalidParameter(
            f"`{place}{given[0][0]}` and `{place}{given[1][0]}` both give the text a form: send one of them",
            parameter=place + given[1][0],
        )
    return given[0][1] if given else None
