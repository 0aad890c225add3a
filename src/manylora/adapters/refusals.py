"""The refusals of adapters: every error text about an adapter that callers see."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.errors import (
    AdapterAccessDenied,
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterInUse,
    AdapterMergeInvalid,
    AdapterNotFound,
    AdapterSourceUnavailable,
    AdapterTooLarge,
    AdapterUnsafeFormat,
    AdapterUnsupported,
)

CONVERSION_HINT = "convert adapter_model.bin: load it with peft, then `save_pretrained(path)` writes safetensors"
MAX_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Refusals:
    """Makes the errors about one adapter. The caller raises them, so that it can name a cause with `from`."""

    adapter_id: str
    source: str
    base: str = ""

    def not_found(self) -> AdapterNotFound:
        return AdapterNotFound(f"Adapter '{self.adapter_id}' was not found in source '{self.source}'")

    def access_denied(self) -> AdapterAccessDenied:
        return AdapterAccessDenied(f"Source '{self.source}' denies access to adapter '{self.adapter_id}'")

    def incompatible(self, mismatch: str) -> AdapterIncompatible:
        return AdapterIncompatible(
            f"Adapter '{self.adapter_id}' is not compatible with model '{self.base}': {mismatch}"
        )

    def unsupported(self, feature: str) -> AdapterUnsupported:
        return AdapterUnsupported(f"Adapter '{self.adapter_id}' uses {feature}, which this server does not apply")

    def corrupt(self, why: str) -> AdapterCorrupt:
        return AdapterCorrupt(f"Adapter '{self.adapter_id}' cannot be read: {why}")

    def unsafe_format(self) -> AdapterUnsafeFormat:
        return AdapterUnsafeFormat(f"Adapter '{self.adapter_id}' has no safetensors weights ({CONVERSION_HINT})")

    def merge_invalid(self, why: str) -> AdapterMergeInvalid:
        return AdapterMergeInvalid(f"unable to merge adapters {self.adapter_id}: {why}")

    def too_large(self, num_bytes: int, limit_bytes: int) -> AdapterTooLarge:
        return AdapterTooLarge(f"Adapter '{self.adapter_id}' needs {num_bytes} bytes; the limit is {limit_bytes}")

    def rank_too_large(self, rank: int, limit: int) -> AdapterTooLarge:
        return AdapterTooLarge(f"Adapter '{self.adapter_id}' has rank {rank}; the limit is {limit}")

    def quarantined(self, hits: int) -> AdapterCorrupt:
        return AdapterCorrupt(
            f"Adapter '{self.adapter_id}' is not served: the logits of {hits} requests were not finite. "
            "A new version of it will be"
        )

    def in_use(self, why: str) -> AdapterInUse:
        return AdapterInUse(f"Adapter '{self.adapter_id}' is in use: {why}")

    def out_of_memory(self) -> AdapterTooLarge:
        return AdapterTooLarge(
            f"Adapter '{self.adapter_id}' needs more memory than there is to check and pack it (adapters.ingest_bytes)"
        )

    def unavailable(self, why: str) -> AdapterSourceUnavailable:
        return AdapterSourceUnavailable(f"Source '{self.source}' is unavailable for adapter '{self.adapter_id}': {why}")


def shown(value: object) -> str:
    """Return `value` as text for a message: hostile characters escaped, and cut short."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


def jointly_too_large(ids: Sequence[str], num_bytes: int, limit_bytes: int) -> AdapterTooLarge:
    """Return the error of adapters that do not fit on the device together."""
    names = ", ".join(f"'{each}'" for each in ids)
    return AdapterTooLarge(f"Adapters {names} need {num_bytes} bytes together; the limit is {limit_bytes}")
