"""The fields of a request, in any dialect, that name an adapter."""

from dataclasses import dataclass, field

from manylora.merging import MergeRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFields:
    """A name, a source, a token, or several names to be merged; their form is checked, they are not resolved.

    recipe  None: nothing is merged
    """

    adapter_id: str | None = None
    source: str | None = None
    token: str = field(default="", repr=False)
    merged_ids: tuple[str, ...] = ()
    recipe: MergeRecipe | None = None
