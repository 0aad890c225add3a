"""The fields of a request of any dialect that name an adapter."""

from dataclasses import dataclass, field

from manylora.merging import MergeRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFields:
    """A name, a source, a token, or several names to merge. Their form is checked; they are not resolved.

    recipe  the recipe of the merge; None: the request merges nothing
    """

    adapter_id: str | None = None
    source: str | None = None
    token: str = field(default="", repr=False)
    merged_ids: tuple[str, ...] = ()
    recipe: MergeRecipe | None = None
