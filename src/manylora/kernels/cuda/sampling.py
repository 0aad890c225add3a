"""Draws from logits on the device: greedy rows there, the others on the host."""

import numpy as np
import torch
from torch import Tensor

from manylora.kernels.sampling import SamplingRules, sample_tokens


def sample_on_device(logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
    """Return each row's token and its highest logit, as `sampling.sample_tokens`.

    The highest logits and their places are found on the device and come to the host in one copy; of rows with a
    temperature, all logits come.
    """
    if not len(logits):
        return [], []
    best = logits.argmax(dim=1, keepdim=True)  # the first of equal ones
    both = torch.cat((best.double(), logits.gather(1, best).double()), dim=1).tolist()
    places, highest = [int(place) for place, _ in both], [peak for _, peak in both]
    drawn = np.flatnonzero(rules["temperature"])
    if drawn.size:
        for index, token in zip(drawn.tolist(), sample_tokens(logits[drawn.tolist()], rules[drawn])[0], strict=True):
            places[index] = token
    return places, highest
