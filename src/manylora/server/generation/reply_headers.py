"""The `x-…` headers of inference replies: the model, the counts of tokens and the times."""

from manylora.server.generation.service import Completion

EXPOSED = (
    *("x-request-id", "x-model-id", "x-adapter-id", "x-adapter-source", "x-adapter-tier", "x-adapter-load-time"),
    *("x-compute-type", "x-compute-characters", "x-compute-time", "x-prompt-tokens", "x-generated-tokens"),
    *("x-skipped-tokens", "x-total-tokens", "x-validation-time", "x-queue-time", "x-time-to-first-token"),
    *("x-inference-time", "x-time-per-token", "x-time-per-output-token", "x-total-time", "x-b3-traceid"),
    *("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-should-retry", "x-envoy-ratelimited"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    *("retry-after", "retry-after-ms", "x-deployment-wait-time"),
)


def head_of(completion: Completion) -> dict[str, str]:
    """Return the headers of streams and of whole replies, which are known at the first token."""
    outputs, served, arrived_s = completion.outputs, completion.model.served, completion.arrival.arrived_s
    headers = {
        "x-model-id": served.model_id,
        "x-compute-type": "gpu+optimized" if served.device.startswith("cuda") else "cpu",
        "x-compute-characters": str(sum(prompt.characters for prompt in completion.prompts)),
        "x-prompt-tokens": str(completion.num_prompt_tokens),
        "x-validation-time": _ms(completion.begun_s - arrived_s),
    }
    headers |= completion.limit_headers()
    if completion.adapter is not None:
        headers |= {"x-adapter-id": completion.model_name, "x-adapter-source": completion.adapter.source.value}
    if completion.adapter_tier is not None and outputs.adapter_use is not None:
        headers["x-adapter-tier"] = completion.adapter_tier
        headers["x-adapter-load-time"] = str(round(outputs.adapter_use.load_ms))
    if outputs.queue_ms is not None:
        headers["x-queue-time"] = str(round(outputs.queue_ms))
    if outputs.first_token_s is not None:
        headers["x-time-to-first-token"] = _ms(outputs.first_token_s - arrived_s)
    return headers


def whole_of(completion: Completion) -> dict[str, str]:
    """Return all headers of a whole reply, after the ends of all sequences."""
    times_ms, generated = timings_of(completion), completion.outputs.num_generated_tokens
    total = str(round(times_ms["total_ms"]))
    return head_of(completion) | {
        "x-generated-tokens": str(generated),
        "x-skipped-tokens": str(completion.outputs.num_gained_tokens),
        "x-total-tokens": str(completion.num_prompt_tokens + generated),
        "x-queue-time": str(round(times_ms["queue_ms"])),
        "x-inference-time": str(round(times_ms["inference_ms"])),
        "x-time-per-token": str(round(times_ms["time_per_token_ms"])),
        "x-time-per-output-token": str(round(times_ms["time_per_output_token_ms"])),
        "x-total-time": total,
        "x-compute-time": total,
    }


def timings_of(completion: Completion) -> dict[str, float]:
    """Return the times of a request in milliseconds, after the ends of all sequences: those of all headers."""
    times_ms, generated = completion.times_ms(), completion.outputs.num_generated_tokens
    run_ms, prefill_ms = times_ms["inference_ms"], max(0.0, times_ms["time_to_first_token_ms"] - times_ms["queue_ms"])
    return times_ms | {
        "validation_ms": round(1e3 * (completion.begun_s - completion.arrival.arrived_s), 3),
        "time_per_token_ms": round(run_ms / max(1, generated), 3),
        "time_per_output_token_ms": round(max(0.0, run_ms - prefill_ms) / max(1, generated - 1), 3),
    }


def _ms(duration_s: float) -> str:
    return str(round(1e3 * duration_s))
