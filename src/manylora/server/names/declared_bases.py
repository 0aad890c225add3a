"""The base that an adapter in a folder declares in its own config, before any ingest has read the adapter."""

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.sources.source import FolderSource
from manylora.errors import ManyloraError

MAX_REMEMBERED = 16_384


class _Config(msgspec.Struct):
    """The one field of `adapter_config.json` that counts here."""

    base: object = msgspec.field(default=None, name="base_model_name_or_path")


class DeclaredBases:
    """Reads configs, and keeps what it has read of each version. Several threads may call it."""

    def __init__(self, sources: Mapping[SourceName, FolderSource]) -> None:
        self._sources = sources
        self._known: OrderedDict[AdapterRef, tuple[str, str]] = OrderedDict()  # the version's stamp, and its base

    def read(self, ref: AdapterRef) -> str | None:
        """Return the name of the base in an adapter's config; empty: it has none, or the adapter cannot be read.

        None for an adapter of a remote source. The engine, which reads the adapter again, refuses a faulty one.
        """
        source = self._sources.get(ref.source)
        if source is None:
            return None
        try:
            stamp = source.locate(ref).stamp
            known = self._known.get(ref)
            if known is not None and known[0] == stamp:
                return known[1]
            declared = msgspec.json.decode(source.config(ref), type=_Config).base
        except (ManyloraError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""
        base = declared if isinstance(declared, str) else ""
        self._known[ref] = stamp, base
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return base
