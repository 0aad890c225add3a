"""Errors of a process that cannot start."""

from manylora.errors.row import SERVER, ErrorRow, ManyloraError


class StartupError(ManyloraError):
    """The process cannot start; the message says what to change."""

    row = ErrorRow(503, "healthcheck", 503, SERVER, "deployment_unavailable")


class ConfigInvalid(StartupError):
    """A setting is unknown, of the wrong type or out of range."""


NEWER_REMEDY = "start that version, or restore a backup that was made before the upgrade (docs/upgrading.md)"


class DataTooNew(StartupError):
    """Stored data are of a version that this program does not know; the message has both versions and the remedy."""


class MemoryPlanImpossible(StartupError):
    """Weights, KV cache and adapter bank do not fit the memory; the message has the arithmetic."""


class ModelUnsupported(StartupError):
    """The base model's config.json asks for something this engine does not compute."""


class ModelNotFound(StartupError):
    """The base model does not exist, or a file of it is missing."""


class NativeBuildFailed(StartupError):
    """The C++ kernels could not be compiled here; the message has the compiler's name or its output."""
