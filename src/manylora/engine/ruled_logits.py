"""Logits after the rules of their rows, wherever the logits lie."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from manylora.engine.logits_rules import Logits, LogitsRules


def apply_rules(logits: Tensor, rows: Sequence[int], rules: Sequence[LogitsRules]) -> Tensor:
    """Return the rows at these indices after their rules: (len(rows), vocab) float32, on the device of `logits`.

    From a device with memory of its own come the logits that the rules read, and the changed ones go back.

    Args:  logits (…, vocab) float32, left unchanged; `rules` are those of each row
    """
    # Extreme penalties may overflow to an infinity, which is then not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        if logits.device.type == "cpu":
            matrix = logits.detach().numpy()
            return torch.from_numpy(np.stack([own.apply(matrix[row]) for row, own in zip(rows, rules, strict=True)]))
        return apply_where_read(logits, rows, rules)


def apply_where_read(logits: Tensor, rows: Sequence[int], rules: Sequence[LogitsRules]) -> Tensor:
    """As `apply_rules`, by two copies of the logits that the rules read: one to the host and one back."""
    width = logits.shape[1]
    changed = logits[torch.tensor(rows, device=logits.device)]
    read = [own.reads(width) for own in rules]
    columns = torch.from_numpy(np.concatenate(read)).to(logits.device)
    counts = [len(ids) for ids in read]
    places = torch.from_numpy(np.repeat(np.arange(len(rows)), counts)).to(logits.device)
    values = np.split(changed[places, columns].cpu().numpy(), np.cumsum(counts)[:-1])
    found = [_changed(own, ids, part, width) for own, ids, part in zip(rules, read, values, strict=True)]
    if barred := [row for row, own in enumerate(rules) if own.bars_others]:
        changed[torch.tensor(barred, device=logits.device)] = -torch.inf
    changed[places, columns] = torch.from_numpy(np.concatenate(found)).to(logits.device)
    return changed


def _changed(
    rules: LogitsRules, ids: "np.ndarray[tuple[int], np.dtype[np.int64]]", values: Logits, width: int
) -> Logits:
    """Return the values of some tokens after the rules, which read no others."""
    row = np.full(width, -np.inf, dtype=np.float32)
    row[ids] = values
    return rules.apply(row)[ids]
