"""The fields of a request of any dialect that name an adapter."""

from dataclasses import dataclass, field

from manylora.merging import MergeRecipe
from manylora.mixing import WeightedNames


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFields:
    """A name, a source, a token, or several names to merge or to mix. Their form is checked; they are not resolved.

    recipe  the recipe of the merge; None: the request merges nothing
    mixed   names and weights of adapters that apply together; empty: one applies at most
    names_several  whether `recipe` or `mixed` is set; a field, so that asking it enters no file on a request's way
    """

    adapter_id: str | None = None
    source: str | None = None
    token: str = field(default="", repr=False)
    merged_ids: tuple[str, ...] = ()
    recipe: MergeRecipe | None = None
    mixed: WeightedNames = ()
    names_several: bool = False
