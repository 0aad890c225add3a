"""What a request of any dialect says of adapters: a name, a source, a token, or several to be merged."""

from dataclasses import dataclass, field

from manylora.errors import InvalidParameter
from manylora.merging import MergeRecipe, read_recipe
from manylora.server.http.json_fields import Fields, wrong_type
from manylora.server.http.known_fields import check_names
from manylora.server.http.request_fields import MERGED_ADAPTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFields:
    """Checked for their form; what the names mean is the gate's to say. `recipe` None: nothing is merged."""

    adapter_id: str | None = None
    source: str | None = None
    token: str = field(default="", repr=False)
    merged_ids: tuple[str, ...] = ()
    recipe: MergeRecipe | None = None


def read_adapter_fields(fields: Fields) -> AdapterFields:
    """Raises `InvalidParameter`."""
    adapter_id, source = fields.string("adapter_id"), fields.string("adapter_source") or None
    token = fields.string("api_token") or ""
    merged = fields.child("merged_adapters")
    if merged is None:
        return AdapterFields(adapter_id=adapter_id, source=source, token=token)
    check_names(merged, MERGED_ADAPTERS, "merged_adapters")
    if adapter_id:
        raise InvalidParameter("at most one of `adapter_id` or `adapters` may be provided", parameter="adapter_id")
    ids = merged.strings("ids")
    recipe = read_recipe(
        len(ids),
        _weights(merged),
        merged.string("merge_strategy"),
        merged.number("density"),
        merged.string("majority_sign_method"),
    )
    return AdapterFields(source=source, token=token, merged_ids=ids, recipe=recipe)


def _weights(merged: Fields) -> list[float]:
    found = []
    for value in merged.array("weights") or ():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type("weights", "an array of numbers", value)
        try:
            found.append(float(value))
        except OverflowError:
            raise InvalidParameter("`weights`: expected finite numbers", parameter="weights") from None
    return found
