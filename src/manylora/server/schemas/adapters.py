"""The fields of a request that name an adapter, and the bodies and replies of the operators' routes."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo
from typing_extensions import TypedDict

from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.errors import InvalidParameter
from manylora.merging import MAX_WEIGHT, MergeRecipe, read_recipe
from manylora.mixing import read_mix
from manylora.server.schemas.body import Body, Read, wrong_type
from manylora.server.schemas.field_rules import FieldRules
from manylora.server.schemas.readers import Text, array, bounds_of, name_of, number, object_of, strings, text
from manylora.system.printable import quoted

POSTED = tuple(each for each in AdapterAction if each not in (AdapterAction.DELETE, AdapterAction.PREFETCH))


def _ids(value: object, info: ValidationInfo) -> tuple[str, ...]:
    return strings(name_of(info), value)


def _weights(value: object, info: ValidationInfo) -> tuple[float, ...]:
    found = []
    for weight in array(name_of(info), value):
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise wrong_type("weights", "an array of numbers", weight)
        try:
            found.append(float(weight))
        except OverflowError:
            raise InvalidParameter("`weights`: expected finite numbers", parameter="weights") from None
    return tuple(found)


class MergedAdapters(Body):
    """Several adapters merged into one for this request."""

    place: ClassVar[str] = "merged_adapters"
    required: ClassVar[tuple[str, ...]] = ("ids", "weights")
    ids: Annotated[tuple[str, ...], Read(_ids, shape=list[str])] = ()
    weights: Annotated[tuple[float, ...], Read(_weights, shape=list[float])] = ()
    merge_strategy: Text = None
    density: Annotated[float | None, Read(number, "number", exclusiveMinimum=0, maximum=1)] = None
    majority_sign_method: Text = None
    rules: ClassVar[FieldRules] = FieldRules(
        hints={
            **dict.fromkeys(("adapter_ids", "adapters", "names"), "use `ids`"),
            **dict.fromkeys(("strategy", "combination_type", "method"), "use `merge_strategy`"),
        },
    )

    def recipe(self) -> MergeRecipe:
        """Return the recipe of the merge. Raises `InvalidParameter`."""
        return read_recipe(len(self.ids), self.weights, self.merge_strategy, self.density, self.majority_sign_method)


def _merged(value: object, info: ValidationInfo) -> MergedAdapters:
    merged = _merged_object(value, info)
    if info.data.get("adapter_id"):
        raise InvalidParameter("at most one of `adapter_id` or `adapters` may be provided", parameter="adapter_id")
    merged.recipe()
    return merged


_merged_object = object_of(MergedAdapters)


class WeightedAdapter(Body):
    """One of the adapters that apply to the request together."""

    place: ClassVar[str] = "adapters"
    required: ClassVar[tuple[str, ...]] = ("id",)
    id: Annotated[str, Read(text, type="string")] = ""
    weight: Annotated[
        float,
        Read(number, "number", minimum=-MAX_WEIGHT, maximum=MAX_WEIGHT),
        Field(description="Factor of its change; default 1. A negative one subtracts the change."),
    ] = 1.0
    rules: ClassVar[FieldRules] = FieldRules(
        hints={
            **dict.fromkeys(("adapter_id", "name", "adapter", "adapter_name", "lora_name"), "use `id`"),
            **dict.fromkeys(("scale", "scaling", "alpha", "strength"), "use `weight`"),
            "source": "one `adapter_source` beside `adapters` is that of all, or an id begins with its source "
            "(`s3://bucket/name`)",
        },
    )


def _mixed(value: object, info: ValidationInfo) -> tuple[WeightedAdapter, ...]:
    found, most = [], bounds_of(info).settings.max_adapters
    for index, each in enumerate(array(name_of(info), value)):
        if index > most:  # `read_mix` refuses one more than the bound; the rest is not read
            break
        if not isinstance(each, dict):
            raise wrong_type(f"adapters[{index}]", "an object with `id` and `weight`", each)
        found.append(WeightedAdapter.model_validate(each, context=info.context))
    for other in ("adapter_id", "merged_adapters"):
        if info.data.get(other):
            raise InvalidParameter(f"at most one of `{other}` and `adapters` may be provided", parameter="adapters")
    read_mix([(each.id, each.weight) for each in found], bounds_of(info).settings.max_adapters)
    return tuple(found)


AdapterId = Annotated[
    str | None,
    Read(text, "string"),
    Field(description="The adapter's name; absent, empty or the base's name is the base model."),
]
AdapterSource = Annotated[
    str | None, Read(text, "string"), Field(description="The source of the adapter: hub, local, s3 or pbase.")
]
ApiToken = Annotated[
    str | None, Read(text, "string"), Field(description="The caller's credential at the adapter's source.")
]
Merged = Annotated[
    MergedAdapters | None,
    Read(_merged, shape=MergedAdapters | None),
    Field(description="Several adapters merged into one, whose image is kept."),
]
Mixed = Annotated[
    tuple[WeightedAdapter, ...],
    Read(_mixed, shape=list[WeightedAdapter] | None),
    Field(description="Several adapters that apply together without a merge: the weighted sum of their changes."),
]
ADAPTER_FIELDS = ("adapter_id", "adapter_source", "api_token", "merged_adapters", "adapters")


class AdapterChoice(Body):
    """An object with only the fields that name an adapter."""

    place: ClassVar[str] = "parameters"
    adapter_id: AdapterId = None
    adapter_source: AdapterSource = None
    api_token: ApiToken = None
    merged_adapters: Merged = None
    adapters: Mixed = ()


class NamingBody(Body):
    """A body that names its adapter at the top level or in `parameters`."""

    parameters: Annotated[AdapterChoice | None, Read(object_of(AdapterChoice), shape=AdapterChoice | None)] = None
    adapter_id: AdapterId = None
    adapter_source: AdapterSource = None
    api_token: ApiToken = None
    merged_adapters: Merged = None
    adapters: Mixed = ()

    @property
    def naming(self) -> "NamingBody | AdapterChoice":
        """Return the object that names the adapter. Raises `InvalidParameter` if both do."""
        if self.parameters is None:
            return self
        if beside := [name for name in ADAPTER_FIELDS if name in self.model_fields_set]:
            raise InvalidParameter(f"`{beside[0]}` stands beside `parameters`: put it into them", parameter=beside[0])
        return self.parameters


def _action(value: object, info: ValidationInfo) -> AdapterAction:
    name = None if value is None else text(value, info)
    if name not in POSTED:
        given = "nothing" if name is None else quoted(name)
        raise InvalidParameter(f"`action` must be one of {', '.join(POSTED)}. Given: {given}", parameter="action")
    return AdapterAction(name)


class AdapterActionBody(Body):
    """The body of POST /v1/adapters/{adapter_id}."""

    required: ClassVar[tuple[str, ...]] = ("action",)
    action: Annotated[AdapterAction, Read(_action, enum=list(POSTED))] = Field(default=None, validate_default=True)
    api_token: ApiToken = None


class OwnAdapter(TypedDict):
    """One version of a tenant's adapter in the engines.

    state       its nearest tier of any replica
    replicas    number of replicas by the state there
    hits        requests that were given a place on the device with it since the engines' starts
    last_use_s  seconds since the last such request; null: there was none
    error       why it cannot be served; empty: it can
    """

    name: str
    base: str
    state: AdapterState
    replicas: dict[str, int]
    num_bytes: int
    hits: int
    last_use_s: float | None
    error: str


class OwnAdapters(TypedDict):
    """States of a tenant's versions."""

    object: Literal["list"]
    data: list[OwnAdapter]


class AdapterPage(TypedDict):
    """One page of adapters.

    after  the parameter `after` of the next page; null at the end
    """

    object: Literal["list"]
    data: list[AdapterInfo]
    has_more: bool
    after: str | None
