"""The replicas of a simulation: the times of their steps and of their tiers.

`cpu` is measured: it is read from the result files of this repository. `card` is a 7B base on one H200 on paper, for
which no result file exists yet.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora.bench.workloads import WORKLOADS
from manylora.cluster.cost import TierRates

RESULTS = Path(__file__).parents[1] / "results"
STORE_S, STORE_BYTES_PER_S = 0.06, 200e6
"""An object storage: seconds to the first byte, and bytes a second of one stream. Assumed, for both profiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of replica.

    step_s, decode_row_s, prompt_row_s  a step of d decoding and p prompt rows takes step_s + d·decode_row_s +
                                        p·prompt_row_s
    rows                                sequences that run at once
    chunk                               prompt rows of one step
    rates                               of loads
    has_host                            host memory is a tier of its own
    bank_bytes, host_bytes, disk_bytes  the tiers' budgets
    rank_bytes                          bytes of an adapter for each rank
    prompt, output                      mean tokens of a request
    """

    name: str
    step_s: float
    decode_row_s: float
    prompt_row_s: float
    rows: int
    chunk: int
    rates: TierRates
    has_host: bool
    bank_bytes: int
    host_bytes: int
    disk_bytes: int
    rank_bytes: int
    prompt: int
    output: int

    @property
    def request_s(self) -> float:
        """Seconds of a replica's time that a mean request takes while all rows run."""
        return self.prompt * self.prompt_row_s + self.output * (self.decode_row_s + self.step_s / self.rows)

    @property
    def prompt_tokens_per_s(self) -> float:
        """Speed of prompts beside half of the rows."""
        step = self.step_s + self.rows / 2 * self.decode_row_s + self.chunk * self.prompt_row_s
        return self.chunk / step


def cpu(results: Path = RESULTS) -> Profile:
    """Return two cores with the default base of 135M parameters in bf16, as `step`, `versus` and A5 measured them."""
    steps = [(row["rows"], row["step"]["median_ms"] / 1e3) for row in _read(results, "step")["results"]]
    row_s, step_s = np.polyfit([rows for rows, _ in steps], [seconds for _, seconds in steps], 1)
    triage = WORKLOADS["triage"]
    rate = _read(results, "versus")["cases"]["triage, base"]["manylora"]["output_tokens_per_s"]["median"]
    prompt_s = triage.output / rate - triage.output * (row_s + step_s / triage.streams)
    pack_bytes_per_s = 40e6 / (_read(results, "adapters-A5")["A5"] / 1e3)
    return Profile(
        name="cpu",
        step_s=float(step_s),
        decode_row_s=float(row_s),
        prompt_row_s=float(prompt_s / triage.prompt),
        rows=32,
        chunk=128,
        # A bank of a CPU maps the packed image; its first read comes from the disk, assumed at 1 GB/s.
        rates=TierRates(
            fixed_s=(0.0, 0.002, STORE_S),
            bytes_per_s=(1e12, 1e9, 1 / (1 / STORE_BYTES_PER_S + 1 / pack_bytes_per_s)),
        ),
        has_host=False,
        bank_bytes=64 * 23 * 460_800,
        host_bytes=0,
        disk_bytes=2_000 * 23 * 460_800,
        rank_bytes=460_800,  # all seven projections of 30 layers of SmolLM2-135M, bf16
        prompt=WORKLOADS["chat"].prompt,
        output=WORKLOADS["chat"].output,
    )


def card() -> Profile:
    """Return one H200 with a 7B base in bf16, on paper: 75 % of 4.2 TB/s, and half of the dense bf16 peak."""
    bytes_per_s = 0.75 * 4.2e12
    rank_bytes = 5_000_000
    row_bytes = 23 * rank_bytes + 524_288 * 1_200  # an adapter of the mean rank, and the keys and values of a row
    return Profile(
        name="card",
        step_s=13.5e9 / bytes_per_s,
        decode_row_s=row_bytes / bytes_per_s,
        prompt_row_s=2 * 6.7e9 / (0.5 * 990e12),
        rows=64,
        chunk=1024,
        rates=TierRates(
            fixed_s=(0.0002, 0.001, STORE_S),
            bytes_per_s=(0.8 * 55e9, 3e9, 1 / (1 / STORE_BYTES_PER_S + 44.7e-3 / 40e6)),
        ),
        has_host=True,
        bank_bytes=128 * 23 * rank_bytes,
        host_bytes=512 * 23 * rank_bytes,
        disk_bytes=2_000 * 23 * rank_bytes,
        rank_bytes=rank_bytes,
        prompt=1024,
        output=256,
    )


def _read(results: Path, name: str) -> Any:  # JSON of several forms
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
