"""What a request of any dialect says of adapters: a name, a source, a token, or several to be merged."""

from dataclasses import dataclass, field
from typing import Protocol

from manylora.merging import MergeRecipe
from manylora.server.schemas.adapters import MergedAdapters


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFields:
    """Checked for their form; what the names mean is the gate's to say. `recipe` None: nothing is merged."""

    adapter_id: str | None = None
    source: str | None = None
    token: str = field(default="", repr=False)
    merged_ids: tuple[str, ...] = ()
    recipe: MergeRecipe | None = None


class NamesAdapter(Protocol):
    """A model of a body that has the fields which name an adapter."""

    @property
    def adapter_id(self) -> str | None: ...
    @property
    def adapter_source(self) -> str | None: ...
    @property
    def api_token(self) -> str | None: ...
    @property
    def merged_adapters(self) -> MergedAdapters | None: ...


def adapter_fields(body: NamesAdapter) -> AdapterFields:
    """Return the fields of a body that name its adapter."""
    source, token, merged = body.adapter_source or None, body.api_token or "", body.merged_adapters
    if merged is None:
        return AdapterFields(adapter_id=body.adapter_id, source=source, token=token)
    return AdapterFields(source=source, token=token, merged_ids=merged.ids, recipe=merged.recipe())
