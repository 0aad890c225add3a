"""The way from the names in a request to a base model and an adapter.

The name of a request means a base, an adapter by the rules of `names/adapter_resolver.py`, or, last, `base/adapter`: an
adapter by those rules on the base that is named. A base named in the request's path or beside the adapter is the only
one that counts. An adapter without a base in the request goes to its own (`generation/adapter_bases.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from manylora.adapter_ref import FOLDER_SOURCES, AdapterRef
from manylora.clock import Clock
from manylora.errors import InvalidParameter
from manylora.http.callers import Caller
from manylora.rollouts.draw import ArmDraw
from manylora.server.access.directory import Directory
from manylora.server.engine_client.served_model import BASE_ALIAS
from manylora.server.generation.adapter_bases import AdapterBases, other_base
from manylora.server.generation.models import ModelHandle, StartedBase, open_model
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.names.adapter_resolver import AdapterResolver
from manylora.server.names.pushed_adapters import PushFinder
from manylora.system.printable import quoted

NO_FIELDS = AdapterFields()


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """The names in a request.

    name        the name of an adapter, or of a base; None: the request has none
    fields      the other fields that name an adapter
    field       the request's field that an error names
    model       the name of a base beside the adapter's; any other text means nothing
    deployment  the name of a base in the request's path; None: the path names none
    draw        the draw of an alias's arm; None: an alias is its version with the largest share
    """

    name: str | None
    fields: AdapterFields = NO_FIELDS
    field: str = "adapter_id"
    model: str | None = None
    deployment: str | None = None
    draw: ArmDraw | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The base model and the adapter that a request means; no adapter is the base itself."""

    model: ModelHandle
    adapter: AdapterRef | None


@dataclass(frozen=True, slots=True)
class Named:
    """The names of a request, resolved. asked: the base that they name; None: it is that of the adapter."""

    asked: ModelHandle | None
    adapter: AdapterRef | None


class ModelRouter:
    """Finds the base and the adapter of each request. The first handle is the default. It belongs to one event loop."""

    def __init__(self, handles: Sequence[ModelHandle], resolver: AdapterResolver, clock: Clock) -> None:
        """`handles` has at least one handle, and no two of them share a name."""
        self.default, *_ = self.handles = tuple(handles)
        self.resolver = resolver
        self.bases = AdapterBases(self.handles, resolver, clock)
        self._by_name = {
            name: handle for handle in reversed(self.handles) for name in handle.served.names if name != BASE_ALIAS
        }
        self._longest_first = sorted(self._by_name, key=len, reverse=True)

    def named(self, name: str | None) -> ModelHandle | None:
        """Return the handle of a base model's name; None for every other text."""
        return None if name is None else self._by_name.get(name.rstrip("/"))

    def serves(self, deployment: str) -> bool:
        """Return whether a base model has that name, from the path of a deployment."""
        return deployment in self._by_name

    async def target(self, naming: Naming, caller: Caller) -> Target:
        """Return the base and the adapter that a request means to its caller.

        Raises as `resolved` and `AdapterBases.of`.
        """
        return await self.target_of(await self.resolved(naming, caller), caller)

    async def resolved(self, naming: Naming, caller: Caller) -> Named:
        """Resolve the names in a request. No engine is asked, so that nothing is fetched.

        Raises as `AdapterResolver.adapter`, and `InvalidParameter` for a base of another path.
        """
        within = self.named(naming.deployment)
        asked = within or self.named(naming.model)
        name, fields, prefixed = await self._unprefixed(naming, caller.tenant)
        asked = prefixed or asked
        adapter = await self.resolver.adapter(
            name, fields, naming.field, tenant=caller.tenant, token=caller.source_token, draw=naming.draw
        )
        if adapter is None:
            asked = self.named(name) or asked or self.default
        if within is not None and asked is not within:
            raise other_base(naming.field, asked or self.default, within)
        return Named(self.default if len(self.handles) == 1 else asked, adapter)

    async def target_of(self, named: Named, caller: Caller) -> Target:
        """Return the target of resolved names. The engines may be asked, which fetch the adapter.

        Raises as `AdapterBases.of`.
        """
        if named.adapter is None or len(self.handles) == 1:
            return Target(named.asked or self.default, named.adapter)
        return Target(await self.bases.of(named.adapter, caller, asked=named.asked), named.adapter)

    async def base_of(self, adapter: AdapterRef, caller: Caller, named: str | None) -> ModelHandle:
        """Return the base of an adapter for an act on it. `named`: the base in the act's request; None: there is none.

        Raises as `AdapterBases.of`, and `InvalidParameter` for a name of no base.
        """
        asked = self.named(named)
        if named is not None and asked is None:
            served = " and ".join(f"`{each.name}`" for each in self.handles)
            raise InvalidParameter(
                f"`base` must be a base of this server: {served}. Given: {quoted(named)}", parameter="base"
            )
        return await self.bases.of(adapter, caller, asked=asked)

    def forget(self, adapter: AdapterRef | None) -> None:
        """Look for the base of an adapter anew with its next request, after an error of the adapter."""
        if adapter is not None and len(self.handles) > 1:
            self.bases.forget(adapter)

    def close(self) -> None:
        """Close every handle, and the resolver."""
        for handle in self.handles:
            handle.close()
        self.resolver.close()

    # ── base/adapter ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _unprefixed(self, naming: Naming, tenant: str) -> tuple[str | None, AdapterFields, ModelHandle | None]:
        """Return the names without the base before them, and that base; None: no name begins with a base.

        Raises `InvalidParameter` if the adapters to apply together name several bases.
        """
        name, fields = naming.name, naming.fields
        given = [*fields.merged_ids, *(each for each, _ in fields.mixed)] if fields.names_several else [name]
        if not any(each is not None and "/" in each for each in given):
            return name, fields, None
        if fields.source is not None and fields.source not in FOLDER_SOURCES:
            return name, fields, None
        split = [(None, None) if each is None else await self.split(each, tenant) for each in given]
        found = list(dict.fromkeys(base for base, _ in split if base is not None))
        if len(found) > 1:
            raise InvalidParameter(
                f"adapters of several bases cannot apply together: {' and '.join(f'`{each.name}`' for each in found)}",
                parameter=naming.field,
            )
        plain = [each for _, each in split]
        base = found[0] if found else None
        if not fields.names_several:
            return plain[0], fields, base
        merged = tuple(str(each) for each in plain[: len(fields.merged_ids)])
        mixed = tuple(
            (str(each), weight) for each, (_, weight) in zip(plain[len(fields.merged_ids) :], fields.mixed, strict=True)
        )
        return name, replace(fields, merged_ids=merged, mixed=mixed), base

    async def split(self, name: str, tenant: str) -> tuple[ModelHandle | None, str]:
        """Return the base before a name and the rest; no base where the whole name means something already."""
        if "://" in name or "/" not in name:
            return None, name
        for base_name in self._longest_first:
            rest = name.removeprefix(f"{base_name}/").strip("/")
            if rest and rest != name.strip("/") and not self.resolver.is_base_name(rest):
                if await self.resolver.is_known(name, tenant):
                    return None, name
                return self._by_name[base_name], rest
        return None, name


def open_models(
    bases: Sequence[StartedBase],
    clock: Clock,
    directory: Directory | None = None,
    pushed: PushFinder | None = None,
    *,
    pushed_dir: str = "",
) -> ModelRouter:
    """Return the router of the bases of one server, of which the first is the default.

    Args:  directory  has the uploads; None: they are in the registry's folder alone
           pushed     the adapters that trainers push; None: the server takes none
           pushed_dir  the folder of their copies
    """
    names = frozenset(name for base in bases for name in base.served.names)
    resolver = AdapterResolver(bases[0].served, directory, clock, pushed, pushed_dir=pushed_dir, base_names=names)
    handles = [open_model(base, clock, is_only=len(bases) == 1) for base in bases]
    return ModelRouter(handles, resolver, clock)
