"""Errors of adapters that cannot serve a request."""

from manylora.errors.row import INVALID, SERVER, ErrorRow, ManyloraError


class AdapterError(ManyloraError):
    """The adapter named by the request cannot serve it. The base model is never used in its place."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_incompatible")


class AdapterNotFound(AdapterError):
    """The source does not know the adapter."""

    row = ErrorRow(404, "generation", 404, INVALID, "adapter_not_found")


class AdapterAccessDenied(AdapterError):
    """The source, or the caller's key, refuses access to the adapter."""

    row = ErrorRow(403, "generation", 403, INVALID, "adapter_access_denied")


class AdapterIncompatible(AdapterError):
    """Shapes, layers, vocabulary or target modules do not fit the base model."""


class AdapterUnsupported(AdapterError):
    """The adapter uses a PEFT feature that changes the result and that manylora does not apply."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_unsupported")


class AdapterCorrupt(AdapterError):
    """The config is missing or unreadable, a file is cut short, or weights or repeatedly logits are not finite."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_corrupt")


class AdapterUnsafeFormat(AdapterError):
    """The adapter has pickled weights only; they are never opened."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_unsafe_format")


class AdapterTooLarge(AdapterError):
    """The adapter is over the byte limit, the rank limit or the adapter memory."""

    row = ErrorRow(413, "generation", 413, INVALID, "adapter_too_large")


class AdapterMergeInvalid(AdapterError):
    """The members of a merge do not fit together under its strategy."""

    row = ErrorRow(422, "generation", 400, INVALID, "adapter_merge_invalid")


class AdapterSourceUnavailable(AdapterError):
    """The source is down, or the network failed after retries."""

    row = ErrorRow(502, "generation", 502, SERVER, "adapter_source_unavailable", retry_after_s=5)


class AdapterLoadTimeout(AdapterError):
    """The adapter was not ready in time; its load goes on in the background."""

    row = ErrorRow(504, "generation", 504, SERVER, "adapter_load_timeout", retry_after_s=5)


class AdapterInUse(AdapterError):
    """The operator would evict an adapter that a request, a pin or a load holds on the device."""

    row = ErrorRow(409, "generation", 409, INVALID, "adapter_in_use")


class AdapterCapacity(AdapterError):
    """The adapter waited too long for its load, or for room beside the pinned adapters."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "adapter_capacity", retry_after_s=2)


class AdapterStorageUnavailable(AdapterError):
    """The server's disk is full or read-only, so no adapter can be loaded; those in memory are still served."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "adapter_storage_unavailable", retry_after_s=5)


class AdapterTextChanged(AdapterError):
    """The adapter was replaced, with another tokenizer or template, after the prompt was made; it is made again."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "adapter_changed", retry_after_s=1)
