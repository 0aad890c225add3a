"""The peak of memory while a base is loaded: the packed total and less than its largest tensor."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from manylora.config.environment import child_environment
from manylora.kernels.storage_form import BFLOAT16, FLOAT32, INT4, INT8, StorageForm
from manylora.models.checkpoint_files import expected_shapes
from manylora.models.sizes import weight_bytes
from manylora.models.spec import read_spec
from manylora.models.tensor_parallel import Share
from tests.conftest import long
from tests.models.gguf.tiny_gguf import write_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32_768,
    "max_position_embeddings": 64,
}
MIXTURE = {
    **CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 2048,
    "vocab_size": 512,
    "num_local_experts": 16,
}
LARGEST = 1 << 25
"""Elements of the largest tensor of each base: its embedding, or that of all experts' first matrices."""
SHARDS = 3
LOAD = """
import sys
from pathlib import Path
from manylora.kernels.select import select_kernels
from manylora.models.spec import read_spec
from manylora.models.tensor_parallel import Share
from manylora.models.weights import load_weights
def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
kernels = select_kernels(sys.argv[2], 1, quantize=sys.argv[3])
directory = Path(sys.argv[1])
spec = read_spec(directory)
Path("/proc/self/clear_refs").write_text("5")
before = field("VmRSS")
share = Share(spec, int(sys.argv[4]), 1) if len(sys.argv) > 4 else None
weights = load_weights(directory, spec, kernels, share=share)
print(before, field("VmRSS"), field("VmHWM"))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 157 MB in shards, whose bytes are finite bfloat16 values."""
    directory = tmp_path_factory.mktemp("base")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(0)
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(SHARDS)]
    for index, (name, shape) in enumerate(expected_shapes(read_spec(directory)).items()):
        bits = random.integers(0x3C00, 0x3F00, shape, dtype=np.int16)
        shards[index % SHARDS][name] = torch.from_numpy(bits).view(torch.bfloat16)
    for index, shard in enumerate(shards):
        save_file(shard, directory / f"model-{index}.safetensors")
    weight_map = {name: f"model-{index}.safetensors" for index, shard in enumerate(shards) for name in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture(scope="module")
def gguf_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes in blocks of Q4_1."""
    directory = tmp_path_factory.mktemp("gguf")
    (directory / "config.json").write_text((base / "config.json").read_text())
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(read_spec(base)).items()}
    write_model(directory / "model.gguf", CONFIG, tensors, kind="Q4_1")
    return directory


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 103 MB whose experts are two tensors."""
    directory = tmp_path_factory.mktemp("mixture")
    (directory / "config.json").write_text(json.dumps(MIXTURE))
    spec = read_spec(directory)
    shapes = {name: shape for name, shape in expected_shapes(spec).items() if ".experts." not in name}
    stem, width = "model.layers.0.mlp.experts", spec.intermediate
    shapes |= {f"{stem}.gate_up_proj": (16, 2 * width, spec.hidden), f"{stem}.down_proj": (16, spec.hidden, width)}
    random = np.random.default_rng(0)
    bits = {name: random.integers(0x3C00, 0x3F00, shape, dtype=np.int16) for name, shape in shapes.items()}
    tensors = {name: torch.from_numpy(own).view(torch.bfloat16) for name, own in bits.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of memory is read from /proc")
@pytest.mark.parametrize(
    ("files", "kernels", "form"),
    [
        ("base", "native", BFLOAT16),
        *long(
            ("base", "reference", FLOAT32),
            ("base", "native", INT8),
            ("base", "native", INT4),
            ("gguf_base", "native", BFLOAT16),
            ("gguf_base", "native", INT4),
            ("mixture", "native", BFLOAT16),
            ("mixture", "native", INT8),
            ("mixture", "native", INT4),
        ),
    ],
    ids=lambda value: value.weights if isinstance(value, StorageForm) else value,
)
def test_loading_takes_the_packed_total_and_no_further_tensor(
    files: str, kernels: str, form: StorageForm, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(files)
    before, after, peak = loaded(directory, kernels, form.weights if form.scale_bytes else "none")
    packed, largest = weight_bytes(read_spec(directory), form), LARGEST * (4 if form is FLOAT32 else 2)
    assert after - before > 0.9 * packed, "the weights were not in memory, so that the peak says nothing"
    # A piece is 2 MiB in float32, with temporaries beside it; the largest tensor is 64 or 128 MiB.
    assert peak - before < packed + largest


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of memory is read from /proc")
def test_a_rank_takes_its_share_and_no_further_tensor(base: Path) -> None:
    before, after, peak = loaded(base, "native", "none", "2")
    packed, largest = 2 * Share(read_spec(base), 2, 1).own.parameters, 2 * LARGEST
    assert 0.9 * packed < after - before
    assert peak - before < packed + largest


def loaded(directory: Path, *options: str) -> tuple[int, int, int]:
    """Load a base in a process of its own; return its bytes of memory before, after and at most."""
    command = [sys.executable, "-P", "-c", LOAD, str(directory), *options]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    before, after, peak = map(int, done.stdout.split())
    return before, after, peak
