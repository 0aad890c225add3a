"""Mixtures of experts: routes, picks and their products."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.operands import Packed


class PlainExperts:
    """The operations of `Operations` on routes and picks; scores and routes are float32.

    Args:  linear  the back end's own product, for the picks of one expert
    """

    def __init__(self, linear: Callable[[Tensor, Packed], Tensor]) -> None:
        self._linear = linear

    def score_experts(self, x: Tensor, router: Tensor) -> Tensor:
        return F.linear(x.float(), router)

    def route(self, scores: Tensor, chosen: int, is_normed: bool) -> Tensor:
        weights, numbers = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        weights = weights[:, :chosen]
        if is_normed:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return torch.cat((numbers[:, :chosen].float(), weights), dim=1)

    def send_to_experts(self, routes: Tensor, x: Tensor) -> Tensor:
        return x[rows_of_picks(routes)]

    def expert_linear(self, routes: Tensor, x: Tensor, experts: tuple[Packed, ...]) -> Tensor:
        ranges = zip(experts, expert_ranges(routes, len(experts)), strict=True)
        parts = [self._linear(x[start:stop], weight) for weight, (start, stop) in ranges if start < stop]
        return torch.cat(parts) if parts else self._linear(x, experts[0])

    def gather_from_experts(self, routes: Tensor, x: Tensor) -> Tensor:
        numbers, weights = routes.chunk(2, dim=1)
        own = torch.empty_like(x)
        own[picks_of(routes)] = x  # in the order of the routes
        terms = own.view(*numbers.shape, x.shape[1]) * weights[:, :, None]
        return terms.sum(dim=1).to(x.dtype)


def rows_of_picks(routes: Tensor) -> Tensor:
    """Return the row of each pick, in the order of the picks: (picks,) int64."""
    return picks_of(routes) // (routes.shape[1] // 2)


def expert_ranges(routes: Tensor, count: int = 0) -> list[tuple[int, int]]:
    """Return the half-open range of the picks of each expert, of `count` of them or more."""
    numbers = routes[:, : routes.shape[1] // 2].reshape(-1).long()
    ends = torch.bincount(numbers, minlength=count).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def picks_of(routes: Tensor) -> Tensor:
    """Return the picks by expert, then by row: `row * chosen + place of the expert in the row's routes`, (picks,)."""
    numbers = routes[:, : routes.shape[1] // 2].reshape(-1)
    return numbers.argsort(stable=True)
