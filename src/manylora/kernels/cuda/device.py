"""The device of the back end: the one that a setting names, checked, its dtype, and its free memory."""

import torch

from manylora.errors import ConfigInvalid

OLDEST_CARD = (7, 5)
"""The least compute capability: the oldest that builds of torch 2.13 compute on."""
BFLOAT16_CARD = (8, 0)
"""The first compute capability with products of bfloat16."""


def find_device(name: str) -> torch.device:
    """Return the device of the setting `model.device`, `cuda` or `cuda:n`.

    Raises: `ConfigInvalid` if torch finds no such card, or one of before `OLDEST_CARD`
    """
    if not torch.cuda.is_available():
        why = "finds no CUDA driver or card" if torch.version.cuda else "is a build without CUDA"
        raise ConfigInvalid(f"model.device {name}: torch {torch.__version__} {why}; use model.device cpu")
    device = torch.device(name)
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise ConfigInvalid(f"model.device {name}: torch finds {count} cards, so the last is cuda:{count - 1}")
    if (capability := torch.cuda.get_device_capability(index)) < OLDEST_CARD:
        raise ConfigInvalid(
            f"model.device {name}: the card has compute capability {capability[0]}.{capability[1]}, and the kernels "
            f"take {OLDEST_CARD[0]}.{OLDEST_CARD[1]} or later; use model.device cpu"
        )
    return torch.device("cuda", index)


def resolve(name: str) -> torch.device:
    """Return the device of any value of `model.device`; `auto` is the first card, or the CPU where there is none.

    Raises: as `find_device`
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cpu") if name == "cpu" else find_device(name)


def dtype_of(device: torch.device) -> torch.dtype:
    """Return the dtype of weights, activations, keys, values and adapters on a device.

    float32 on the CPU, bfloat16 on a card that multiplies it, else float16, whose largest number is 65,504.
    """
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BFLOAT16_CARD else torch.float16


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes of a card; None for the CPU, whose memory is the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
