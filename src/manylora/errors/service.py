"""Errors of a server that cannot serve now."""

from manylora.errors.row import SERVER, ErrorRow, ManyloraError


class ServiceError(ManyloraError):
    """The server cannot serve any such request now."""


class Overloaded(ServiceError):
    """The concurrency or queue limit is reached."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "overloaded", retry_after_s=1)


class QueueTimeout(ServiceError):
    """The request waited longer than `engine.max_queue_s` for its first step."""

    row = ErrorRow(504, "generation", 504, SERVER, "queue_timeout", retry_after_s=2)


class Unavailable(ServiceError):
    """The engine is starting, draining or was restarted; the request was not begun or may be repeated."""

    row = ErrorRow(503, "healthcheck", 503, SERVER, "deployment_unavailable", retry_after_s=2)


class RankLost(Unavailable):
    """A rank of a tensor-parallel engine has ended or is silent; the request ends, and all ranks start anew."""


class ControlUnavailable(ServiceError):
    """The control plane does not answer, and the server's copy of its state is too old to use."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "control_unavailable", retry_after_s=2)


class UsageUnrecorded(ServiceError):
    """The disk takes no record of usage, so the server refuses requests that it could not charge."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "usage_unrecorded", retry_after_s=5)


class StorageUnavailable(ServiceError):
    """The disk takes no files or responses of tenants."""

    row = ErrorRow(503, "overloaded", 503, SERVER, "storage_unavailable", retry_after_s=5)


class EngineFault(ServiceError):
    """The engine has failed during the generation."""


class EmbeddingFailed(EngineFault):
    """The engine has failed while it computed an embedding."""

    row = ErrorRow(500, "embedding_failure", 500, SERVER, "embedding_failure")


class ClassificationFailed(EngineFault):
    """The engine has failed while it computed the classes of a text or of its tokens."""

    row = ErrorRow(500, "classification_failure", 500, SERVER, "classification_failure")


class IncompleteGeneration(ServiceError):
    """A stream or run ended without a last token."""

    row = ErrorRow(500, "incomplete_generation", 500, SERVER, "incomplete_generation")
