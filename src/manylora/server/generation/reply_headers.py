"""The `x-…` headers of inference replies: what ran, what it used and where the time went."""

from manylora.adapter_ref import SourceName
from manylora.adapter_state import AdapterState
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.outputs import RequestOutputs
from manylora.server.http.context import HttpContext

EXPOSED = (
    *("x-request-id", "x-model-id", "x-adapter-id", "x-adapter-source", "x-adapter-tier", "x-adapter-load-time"),
    *("x-compute-type", "x-compute-characters", "x-compute-time", "x-prompt-tokens", "x-generated-tokens"),
    *("x-skipped-tokens", "x-total-tokens", "x-validation-time", "x-queue-time", "x-time-to-first-token"),
    *("x-inference-time", "x-time-per-token", "x-time-per-output-token", "x-total-time", "x-b3-traceid"),
    *("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-should-retry", "x-envoy-ratelimited"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    *("retry-after", "retry-after-ms"),
)


def head_of(work: RequestOutputs, context: HttpContext, served: ServedModel) -> dict[str, str]:
    """What is known when the first token is: headers of streams and of whole replies alike."""
    headers = {
        "x-model-id": served.model_id,
        "x-compute-type": "gpu+optimized" if served.device.startswith("cuda") else "cpu",
        "x-compute-characters": str(sum(draft.characters for draft in work.drafts)),
        "x-prompt-tokens": str(work.num_prompt_tokens),
        "x-validation-time": _ms(work.begun_s - context.arrival.arrived_s),
    }
    headers |= work.limit_headers()
    adapter = work.drafts[0].adapter
    if adapter is not None:
        headers |= {
            "x-adapter-id": adapter.id_for(context.arrival.tenant),
            "x-adapter-source": adapter.source.value,
        }
    if adapter is not None and work.adapter_use is not None:
        headers["x-adapter-tier"] = tier_name(work.adapter_use.tier, served.device, adapter.source)
        headers["x-adapter-load-time"] = str(round(work.adapter_use.load_ms))
    if work.queue_ms is not None:
        headers["x-queue-time"] = str(round(work.queue_ms))
    if work.first_token_s is not None:
        headers["x-time-to-first-token"] = _ms(work.first_token_s - context.arrival.arrived_s)
    return headers


def whole_of(work: RequestOutputs, context: HttpContext, served: ServedModel) -> dict[str, str]:
    """The headers of a reply that is sent when everything has ended."""
    timing = timings_of(work, context)
    generated = work.num_generated_tokens
    run_ms, prefill_ms = timing["inference_ms"], max(0.0, timing["time_to_first_token_ms"] - timing["queue_ms"])
    total = str(round(timing["total_ms"]))
    return head_of(work, context, served) | {
        "x-generated-tokens": str(generated),
        "x-skipped-tokens": "0",
        "x-total-tokens": str(work.num_prompt_tokens + generated),
        "x-queue-time": str(round(timing["queue_ms"])),
        "x-inference-time": str(round(run_ms)),
        "x-time-per-token": str(round(run_ms / max(1, generated))),
        "x-time-per-output-token": str(round(max(0.0, run_ms - prefill_ms) / max(1, generated - 1))),
        "x-total-time": total,
        "x-compute-time": total,
    }


def timings_of(work: RequestOutputs, context: HttpContext) -> dict[str, float]:
    """Milliseconds since arrival, and of the slowest sequence where there are several."""
    ends = [generation.finished for generation in work.generations if generation.finished is not None]
    arrived_s, now_s = context.arrival.arrived_s, context.clock.monotonic_s()
    first_s = work.first_token_s if work.first_token_s is not None else now_s
    return {
        "queue_ms": round(max((end.queue_ms or 0.0 for end in ends), default=0.0), 3),
        "adapter_load_ms": round(work.adapter_use.load_ms if work.adapter_use else 0.0, 3),
        "time_to_first_token_ms": round(1e3 * (first_s - arrived_s), 3),
        "inference_ms": round(max((end.run_ms or 0.0 for end in ends), default=0.0), 3),
        "total_ms": round(1e3 * (now_s - arrived_s), 3),
    }


def tier_name(tier: str, device: str, source: SourceName) -> str:
    """Where a request found its adapter, in the words customers know; on a CPU the device's memory is the host's.

    What no tier had yet was found at its source: a local directory is on this machine's disk, every other is remote.
    """
    match tier:
        case AdapterState.ON_DEVICE.value:
            return "gpu" if device.startswith("cuda") else "cpu"
        case AdapterState.IN_HOST.value:
            return "cpu"
        case AdapterState.ON_DISK.value:
            return "disk"
    return "disk" if source is SourceName.LOCAL else "remote"


def _ms(duration_s: float) -> str:
    return str(round(1e3 * duration_s))
