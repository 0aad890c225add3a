"""The replies of the routes about the server."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class HealthReply(TypedDict):
    """The reply of a server that is well.

    bases  each base by its name, where the server has several: one that is well is enough
    ranks  the number of ranks of each base that several share
    """

    status: Literal["ok"]
    bases: NotRequired[dict[str, Literal["ok", "unhealthy"]]]
    ranks: NotRequired[dict[str, int]]


class UnhealthyReply(TypedDict):
    """The reply of a server that is not well, loads its model or shuts down."""

    error: Literal["unhealthy"]
    error_type: Literal["healthcheck"]
    code: Literal["deployment_unavailable"]


class InfoReply(TypedDict):
    """The served model and its limits, in the names of LoRAX."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_total_tokens: int
    waiting_served_ratio: float
    max_batch_total_tokens: int
    max_waiting_tokens: int
    validation_workers: int
    eager_prefill: bool
    version: str
    sha: str | None
    docker_label: str | None
    request_logger_url: None
    tensor_parallel: int
