"""The device that a setting names is found, or refused in one line."""

import sys

import pytest
import torch

from manylora.errors import ConfigInvalid
from manylora.kernels import select
from manylora.kernels.cuda.device import dtype_of, resolve
from manylora.kernels.select import select_kernels
from tests.kernels.cuda.interpreted import require_triton

without_card = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


@without_card
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_card_that_torch_does_not_find_is_refused_in_one_line(name: str, kernels: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^model.device {name}: torch .* CUDA.*; use model.device cpu$") as caught:
        select_kernels(kernels, 1, device=name)
    assert "\n" not in caught.value.message


@without_card
def test_auto_is_the_cpu_where_there_is_no_card() -> None:
    assert resolve("auto").type == "cpu"
    assert select_kernels("auto", 1, device="auto").name == select_kernels("auto", 1).name
    assert select_kernels("torch", 1, device="auto").device == "cpu"


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((7, 0), None)],
)
def test_a_card_without_bfloat16_computes_in_float16_and_an_older_one_is_refused(
    capability: tuple[int, int], dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("is_available", True), ("device_count", 1), ("get_device_capability", capability)):
        monkeypatch.setattr(torch.cuda, name, lambda *given, value=value: value)
    if dtype is None:
        with pytest.raises(ConfigInvalid, match=r"^model.device cuda: the card has compute capability 7.0, .* 7.5 or"):
            resolve("cuda")
        return
    assert dtype_of(resolve("cuda")) is dtype
    assert dtype_of(resolve("cpu")) is torch.float32


def test_the_processor_s_own_kernels_stay_on_it_with_auto() -> None:
    assert select_kernels("reference", 1, device="auto").own_memory_bytes is None
    assert select_kernels("auto", 1, device="auto", quantize="int8").device == "cpu"


def test_the_torch_kernels_of_the_cpu_compute_in_float32_on_host_memory() -> None:
    kernels = select_kernels("torch", 1)
    assert kernels.activation_dtype is torch.float32
    assert kernels.own_memory_bytes is None
    assert not kernels.is_row_independent


def test_kernels_in_triton_run_on_a_cpu_in_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    require_triton()
    assert select_kernels("triton", 1).name == "triton"
    monkeypatch.setattr("manylora.kernels.cuda.jit.programs.interpreting.is_interpreting", lambda: False)
    with pytest.raises(ConfigInvalid, match=r"^model\.kernels triton computes on a card: .*TRITON_INTERPRET=1"):
        select_kernels("triton", 1)


def test_auto_is_torch_on_a_card_without_triton_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The card is played: its tensors are those of host memory."""
    card = torch.device("meta")
    monkeypatch.setattr(select, "resolve", lambda name: card)
    monkeypatch.setattr(select, "dtype_of", lambda device: torch.bfloat16)
    monkeypatch.setattr(select, "free_bytes", lambda device: 1 << 30)
    monkeypatch.setitem(sys.modules, "manylora.kernels.cuda.jit.backend", None)
    kernels = select_kernels("auto", 1, device="cuda")
    assert (kernels.name, kernels.own_memory_bytes) == ("torch", 1 << 30)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("kernels.fallback to=torch reason=")
    with pytest.raises(ConfigInvalid, match=r"^model\.kernels triton: .*install triton, or use model.kernels torch$"):
        select_kernels("triton", 1, device="cuda")


def test_without_triton_the_line_names_the_package_and_the_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("backend", "interpreting"):
        monkeypatch.setitem(sys.modules, f"manylora.kernels.cuda.jit.{name}", None)
    with pytest.raises(ConfigInvalid, match=r"^model\.kernels triton: .*install triton, or use model.kernels torch$"):
        select_kernels("triton", 1)
