"""Names of adapters: their resolution for a caller, and the list of all names that a caller may use.

The rules for a caller of tenant T, in their order. Slashes at the end of a name are ignored.

1. No name, `__base_model__`, the base's id, its deployment's name or another alias of it: the base model. With
   `adapter_source: pbase`, T's own repository of that name, where T has one.
2. `adapter_source`, or a scheme in the name (`s3://bucket/name`), names the only source of the search.
   `pushed` is T's own pushed adapter of that name.
3. A first word that is a present or former repository of T: that repository (`repo`, `repo/3`, `repo/alias`).
4. A folder below one of the adapter roots.
5. `owner/repo`, `owner/repo/3`, `owner/repo/alias` of a tenant that lets T use it; `T/repo` is another spelling of
   `repo`.
6. An adapter that T has pushed. No name with a meaning by the other rules, but for the default source, can be pushed.
7. The default source. If that is a hub, only names of the form `org/name` go to it.

`generation/routing.py` has a last rule, `base/adapter`, for names that begin with a base's and mean nothing by the
rules 2 to 6. The default source would only be known to lack such a name after a download.

`listed` returns the names that `resolve` finds by rules 3 to 6 and, for adapters that T has used lately, by rule 7.
Each name has its reference beside it. The resolver finds uploads in the edge's copy of the control plane's facts. It
reads the disk only in its own pool of threads, so that a slow file system delays only requests whose names need it.
"""

import asyncio
import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from manylora.adapter_ref import AdapterRef, SourceName, is_hub_id, merged_ref, mixed_ref, parse_adapter_ref
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.sources.upload_folders import Registry, folder_sources
from manylora.clock import Clock, SystemClock
from manylora.errors import (
    AdapterError,
    AdapterNotFound,
    AdapterReferenceInvalid,
    ControlUnavailable,
    InvalidParameter,
)
from manylora.ids import TenantId
from manylora.rollouts.draw import ArmDraw
from manylora.server.access.directory import Directory, Upload
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.names.declared_bases import DeclaredBases
from manylora.server.names.pushed_adapters import PushFinder

NO_FIELDS = AdapterFields()
FRESH_S = 1.0
"""Seconds for which the disk's answer for an existing name is reused. The answer for a missing name is not reused."""
MAX_REMEMBERED = 16_384
DISK_THREADS = 4
_PUSHED = f"{SourceName.PUSHED}://"
_SCHEME = re.compile(rf"({'|'.join(SourceName)})://?(?=[^/])")

Listed = tuple[str, AdapterRef]
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """The disk's answer for a name.

    is_local  whether a folder of that name is below an adapter root, valid or not
    """

    has_repository: bool = False
    has_version: bool = False
    is_local: bool = False


class AdapterResolver:
    """Resolves and lists names. It belongs to one event loop; only the methods named `_read…` touch the disk."""

    def __init__(
        self,
        served: ServedModel,
        directory: Directory | None = None,
        clock: Clock | None = None,
        pushed: PushFinder | None = None,
        *,
        pushed_dir: str = "",
        base_names: frozenset[str] | None = None,
    ) -> None:
        """Args:
        directory   has the uploads; None: uploads are in the folder of the registry alone
        pushed      has the pushes; None: there are none
        pushed_dir  the folder of their copies
        base_names  the names of all served bases; None: those of `served`
        """
        self._served = served
        self._pushed = pushed
        self._directory = directory
        self._clock = clock or SystemClock()
        self._base_names = base_names or served.names
        self._enabled = frozenset(served.adapter_sources)
        self._local = LocalSource(tuple(map(Path, served.adapter_roots)))
        self._registry = Registry(Path(served.registry_dir)) if served.registry_dir else None
        folders = folder_sources(served.adapter_roots, served.registry_dir, pushed_dir)
        self._declared = DeclaredBases(folders)
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="manylora-names")
        self._known: OrderedDict[tuple[str, str], tuple[float, _OnDisk]] = OrderedDict()
        self._walk: asyncio.Future[list[str]] | None = None  # the next walk, which has not begun
        self._walking = asyncio.Lock()

    def close(self) -> None:
        self._disk.shutdown(wait=False, cancel_futures=True)

    async def has_tenant(self, tenant: str) -> bool:
        """Return whether the control plane or the registry's folder knows a tenant of that code."""
        if self._directory is None or self._directory.has_tenant(tenant):
            return True
        return self._registry is not None and await self._on_disk(self._registry.has_tenant, tenant)

    # ── one name ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def adapter(
        self,
        name: str | None,
        fields: AdapterFields = NO_FIELDS,
        parameter: str = "adapter_id",
        *,
        tenant: str,
        token: str = "",
        draw: ArmDraw | None = None,
    ) -> AdapterRef | None:
        """Return the adapter that a request names, merges or mixes; None is the base model.

        `token` is the caller's credential at the source, for a request without one. `parameter` is the request's field
        that an error names; `draw` chooses the arm of an alias. Raises as `resolve`.
        """
        if token and not fields.token:
            fields = dataclasses.replace(fields, token=token)
        if fields.recipe is not None:
            members = [await self._member(each, fields, tenant, "merged", draw) for each in fields.merged_ids]
            return merged_ref(members, fields.recipe)
        if fields.mixed:
            return await self._mixed(fields, tenant, draw)
        try:
            return await self.resolve(name, source=fields.source, tenant=tenant, token=fields.token, draw=draw)
        except AdapterReferenceInvalid as error:
            error.parameter = parameter if error.parameter == "adapter_id" else error.parameter
            raise

    async def _member(
        self, name: str, fields: AdapterFields, tenant: str, done: str, draw: ArmDraw | None
    ) -> AdapterRef:
        ref = await self.resolve(name, source=fields.source, tenant=tenant, token=fields.token, draw=draw)
        if ref is None:
            raise AdapterNotFound(f"`{name}` is the base model, which cannot be {done}")
        return ref

    async def _mixed(self, fields: AdapterFields, tenant: str, draw: ArmDraw | None) -> AdapterRef:
        """Return the reference of adapters that apply together. Raises `InvalidParameter` if two names are one."""
        members: dict[AdapterRef, str] = {}
        for name, _ in fields.mixed:
            try:
                ref = await self._member(name, fields, tenant, "one of several adapters", draw)
            except AdapterReferenceInvalid as error:
                error.parameter = "adapters" if error.parameter == "adapter_id" else error.parameter
                raise
            if ref in members:
                raise InvalidParameter(
                    f"`adapters` names the adapter '{ref.id_for(tenant)}' twice ('{members[ref]}', '{name}'): name it "
                    "once, with the sum of the weights",
                    parameter="adapters",
                )
            members[ref] = name
        return mixed_ref(list(members), [weight for _, weight in fields.mixed])

    async def resolve(
        self,
        name: str | None,
        *,
        tenant: str,
        source: str | None = None,
        token: str = "",
        draw: ArmDraw | None = None,
    ) -> AdapterRef | None:
        """Return the adapter that a name means by the rules above; None is the base model.

        Raises `AdapterReferenceInvalid` for a text that cannot be a name, and `AdapterNotFound`. The engine refuses a
        name of rule 2 or 6 that its source does not have.
        """
        if name is None or self.is_base_name(name):
            _check_source(source)
            has_own = name is not None and source == SourceName.PBASE and self._is_own(tenant, _trimmed(name))
            return await self._uploaded(_trimmed(name), tenant, draw) if name is not None and has_own else None
        return await self._resolve(name, source, tenant, token, draw)

    def is_base_name(self, name: str) -> bool:
        return not name or _trimmed(name) in self._base_names

    async def is_known(self, name: str, tenant: str) -> bool:
        """Return whether a plain name means an adapter by the rules 3 to 5: it is uploaded or in a folder."""
        name = _trimmed(name)
        if self._directory is not None and self._directory.upload(TenantId(tenant), name) is not None:
            return True
        return self._is_own(tenant, name) or await self._look(tenant, name) != _OnDisk()

    async def declared_bases(self, refs: Sequence[AdapterRef]) -> list[str | None]:
        """Return the name of the base in the config of each adapter, as `DeclaredBases.read`."""
        return await self._on_disk(lambda: [self._declared.read(ref) for ref in refs])

    async def _resolve(
        self, name: str, source: str | None, tenant: str, token: str, draw: ArmDraw | None
    ) -> AdapterRef:
        if self._pushed is not None and (source == SourceName.PUSHED or name.startswith(_PUSHED)):
            pushed = await self._pushed.current(tenant, _trimmed(name).removeprefix(_PUSHED))
            if pushed is None:
                raise _not_found(name, SourceName.PUSHED)
            return pushed
        scheme = _SCHEME.match(name)
        if scheme is not None and scheme[1] == SourceName.PBASE and source in (None, SourceName.PBASE):
            name, source = name[scheme.end() :], SourceName.PBASE
        if source is None and scheme is None and "://" not in name:
            return await self._by_rules(_trimmed(name), tenant, token, draw)
        if source == SourceName.PBASE and SourceName.PBASE in self._enabled:
            return await self._uploaded(_trimmed(name), tenant, draw)
        return self._parsed(name, source, token=token)

    async def _by_rules(self, name: str, tenant: str, token: str, draw: ArmDraw | None) -> AdapterRef:
        upload = self._directory.upload(TenantId(tenant), name, draw) if self._directory is not None else None
        if self._is_own(tenant, name):
            if upload is None:
                raise _not_found(name, SourceName.PBASE)
            return self._upload_ref(upload)
        default = self._served.default_source
        has_others = self._registry is not None or upload is not None or self._pushed is not None
        if has_others or default is not SourceName.LOCAL:
            on_disk = await self._look(tenant, name)
            if on_disk.has_repository:
                return self._folder_ref(name, tenant, on_disk)
            if on_disk.is_local:
                return self._parsed(name, SourceName.LOCAL)
        if upload is not None:
            return self._upload_ref(upload)
        if (pushed := await self._pushed_as(name, tenant)) is not None:
            return pushed
        ref = self._parsed(name, default if self._may_be_at_default(name) else SourceName.LOCAL, token=token)
        if ref.source is SourceName.LOCAL and default is not SourceName.LOCAL:
            raise AdapterNotFound(f"Adapter '{name}' was not found")
        return ref

    async def _pushed_as(self, name: str, tenant: str) -> AdapterRef | None:
        """Return the pushed adapter of a name. Raises `ControlUnavailable` where no other source may have the name."""
        if self._pushed is None:
            return None
        try:
            return await self._pushed.current(tenant, name)
        except ControlUnavailable:
            if self._served.default_source is SourceName.LOCAL or not self._may_be_at_default(name):
                raise
            return None

    async def _uploaded(self, name: str, tenant: str, draw: ArmDraw | None = None) -> AdapterRef:
        """Return the adapter of a name with `adapter_source: pbase`: rules 3 and 5 alone."""
        if self._directory is not None:
            if (upload := self._directory.upload(TenantId(tenant), name, draw)) is not None:
                return self._upload_ref(upload)
            if self._is_own(tenant, name):
                raise _not_found(name, SourceName.PBASE)
        return self._folder_ref(name, tenant, await self._look(tenant, name))

    def _folder_ref(self, name: str, tenant: str, on_disk: _OnDisk) -> AdapterRef:
        """Return the adapter of a repository that is only in the registry's folder."""
        if not on_disk.has_version:
            raise _not_found(name, SourceName.PBASE)
        return self._parsed(name, SourceName.PBASE, tenant=tenant)

    def _is_own(self, tenant: str, name: str) -> bool:
        first = name.partition("/")[0]
        return self._directory is not None and self._directory.knows(TenantId(tenant), first)

    def _may_be_at_default(self, name: str) -> bool:
        return self._served.default_source is not SourceName.HUB or is_hub_id(name)

    def _upload_ref(self, upload: Upload) -> AdapterRef:
        return self._parsed(f"{upload.repository}/{upload.version}", SourceName.PBASE, tenant=upload.owner)

    def _parsed(self, name: str, source: str | None, *, token: str = "", tenant: str = "") -> AdapterRef:
        return parse_adapter_ref(name, source, self._enabled, token=token, tenant=tenant)

    # ── all names ────────────────────────────────────────────────────────────────────────────────────────────────

    async def listed(self, tenant: str, recent: Sequence[AdapterRef] = ()) -> list[Listed]:
        """Return every name that means an adapter to a tenant, with its present version; local adapters come first.

        `recent` has the adapters of remote sources that the tenant has used lately. The name of one that is not at the
        default source has its scheme (`hub://org/name`), since the plain name does not resolve.
        """
        directory = self._directory if SourceName.PBASE in self._enabled else None
        uploads = [] if directory is None else directory.listed(TenantId(tenant))
        own = {name: upload for name, upload in uploads if self._is_own(tenant, name)}
        lent = {name: upload for name, upload in uploads if name not in own}
        at_default = {ref.id for ref in recent if self._is_at_default(ref)}
        local = await self.local_names()
        in_folder, on_disk = await self._on_disk(self._read_beside, tenant, [*lent, *at_default])
        first_words = {name.partition("/")[0] for name in in_folder}

        def is_shadowed(name: str) -> bool:
            return self._is_own(tenant, name) or name.partition("/")[0] in first_words

        found = {name: self._parsed(name, SourceName.LOCAL) for name in local if not is_shadowed(name)}
        found |= {name: self._parsed(name, SourceName.PBASE, tenant=tenant) for name in in_folder}
        found |= {name: self._upload_ref(upload) for name, upload in own.items()}
        pushes: dict[str, AdapterRef] = {}
        if self._pushed is not None:
            pushes = dict(await self._pushed.listed(tenant))
        for name, upload in lent.items():
            if name not in on_disk and not is_shadowed(name):
                found.setdefault(name, self._upload_ref(upload))
        found = {name: ref for name, ref in pushes.items() if not is_shadowed(name)} | found
        taken = on_disk | found.keys()
        for ref in recent:
            is_plain = self._is_at_default(ref) and ref.id not in taken and not is_shadowed(ref.id)
            found[ref.id if is_plain else f"{ref.source}://{ref.id}"] = ref
        return [(name, ref) for name, ref in found.items() if not self.is_base_name(name)]

    def _is_at_default(self, ref: AdapterRef) -> bool:
        return ref.source is self._served.default_source and self._may_be_at_default(ref.id)

    async def local_names(self) -> list[str]:
        """Return the names of local adapters. The walk begins after this call; concurrent calls share one walk."""
        if self._walk is None:
            self._walk = asyncio.ensure_future(self._walk_roots())
        return await asyncio.shield(self._walk)

    async def _walk_roots(self) -> list[str]:
        async with self._walking:
            self._walk = None  # later calls need a later walk
            names = await self._on_disk(self._local.list)
        return [name for name in names if not self.is_base_name(name)]

    async def is_served(self, ref: AdapterRef) -> bool:
        """Return whether a local adapter is valid now. An upload that resolves is always valid."""
        return ref.source is not SourceName.LOCAL or await self._on_disk(self._read_is_served, ref.id)

    async def listed_as(self, name: str, ref: AdapterRef, tenant: str) -> str:
        """Return the spelling in `listed` of a name that has resolved to `ref`."""
        name = _trimmed(_SCHEME.sub("", name, count=1))
        if ref.source is SourceName.PUSHED:
            return name
        if ref.source is SourceName.PBASE:
            is_long = ref.tenant == tenant and name.startswith(f"{tenant}/") and not self._is_own(tenant, tenant)
            return name.removeprefix(f"{tenant}/") if is_long else name
        if ref.source is SourceName.LOCAL:
            return ref.id
        try:
            is_plain = await self.resolve(ref.id, tenant=tenant) == ref
        except (AdapterNotFound, AdapterReferenceInvalid):
            is_plain = False
        return ref.id if is_plain else f"{ref.source}://{ref.id}"

    # ── the disk ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _on_disk(self, read: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call `read` in a thread of the disk's pool."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, read, *arguments)

    async def _look(self, tenant: str, name: str) -> _OnDisk:
        """Return the disk's answer for a name; reuse an answer of an existing name for `FRESH_S` seconds."""
        key, now_s = (tenant, name), self._clock.monotonic_s()
        known = self._known.get(key)
        if known is not None and now_s - known[0] < FRESH_S:
            return known[1]
        found = await self._on_disk(self._read, tenant, name)
        self._known.pop(key, None)
        if found != _OnDisk():
            self._known[key] = now_s, found
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _read(self, tenant: str, name: str) -> _OnDisk:
        if self._registry is not None and self._registry.has(tenant, name.partition("/")[0]):
            return _OnDisk(has_repository=True, has_version=self._registry.has(tenant, name))
        return _OnDisk(is_local=self._read_is_local(name))

    def _read_is_local(self, name: str) -> bool:
        try:
            self._local.locate(AdapterRef(SourceName.LOCAL, name))
        except AdapterNotFound:
            return False
        except AdapterError:
            return True  # the error of its load names the fault
        return True

    def _read_is_served(self, name: str) -> bool:
        try:
            self._local.locate(AdapterRef(SourceName.LOCAL, name))
        except AdapterError:
            return False
        return True

    def _read_beside(self, tenant: str, names: Iterable[str]) -> tuple[list[str], set[str]]:
        """Return a tenant's names that only the registry's folder has, and the names of local adapters in `names`."""
        in_folder: list[str] = []
        for repository in [] if self._registry is None else self._registry.repositories(tenant):
            if not self._is_own(tenant, repository):
                versions = self._registry.versions(tenant, repository) if self._registry is not None else []
                in_folder += [repository, *(f"{repository}/{version}" for version in versions)]
        return in_folder, {name for name in names if self._read_is_local(name)}


def _check_source(source: str | None) -> None:
    """Raise `InvalidParameter` for an unknown source. A known source beside the base's name has no effect."""
    if source is not None and source not in list(SourceName):
        raise AdapterReferenceInvalid(
            f"`adapter_source` must be one of {', '.join(SourceName)}. Given: {source[:80]}", parameter="adapter_source"
        )


def name_in_path(text: str) -> str:
    """Return the name in a URL path, in which repeated slashes have become one: `hub:/org/name` is `hub://org/name`."""
    return _SCHEME.sub(lambda match: f"{match[1]}://", text, count=1)


def _trimmed(name: str) -> str:
    return name.rstrip("/") or name


def _not_found(name: str, source: SourceName) -> AdapterNotFound:
    return AdapterNotFound(f"Adapter '{name}' was not found in source '{source}'")
