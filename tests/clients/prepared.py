"""A server with keys, prepared for the scripts of clients: two tenants, several keys, and adapters of all kinds."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from safetensors.numpy import save_file

from tests.support.serving import running_server
from tests.support.waiting import PATIENCE_S

DEMO_ADAPTER = "support-triage"
WINDOW = 2048
MAX_CONCURRENT = 16
LIMITED = 3
LAYERS, HIDDEN = 30, 576
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TOOLS_TURN = (
    '{%- if tools %}{{ \'<|im_start|>system\\nCall a function as <tool_call>\\n{"name": …, "arguments": {…}}'
    "\\n</tool_call>. Functions:' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif -%}"
)
QUESTION = "Where is my parcel?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The server and its contents. Scripts read them as JSON.

    url            address of the server
    key            key of the tenant `tenant`, with all of a customer's scopes
    limited_key    key of the same tenant that allows `limited_requests` requests a minute
    operator       key of the operator
    base           name of the base model, with `window` tokens
    base_dir       folder of the base model, with its tokenizer
    adapter        adapter that answers `prompt`, or `question` in a chat, with `answer`
    ranks          adapters of the ranks 4, 8 and 12
    classifier     adapter with a head of two labels for texts, `bad` and `good`
    broken         adapter whose weights are cut short
    private        adapter of another tenant
    max_concurrent sequences that the server takes at one time
    upload         folder of an adapter to upload
    scratch        an empty folder
    """

    url: str
    key: str
    limited_key: str
    operator: str
    tenant: str
    base: str
    base_dir: str
    upload: str
    scratch: str
    adapter: str = DEMO_ADAPTER
    question: str = QUESTION
    prompt: str = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    answer: str = "delivery"
    ranks: tuple[str, ...] = ("rank-4", "rank-8", "rank-12")
    classifier: str = "sorter"
    broken: str = "broken"
    private: str = "private/1"
    limited_requests: int = LIMITED
    max_concurrent: int = MAX_CONCURRENT
    window: int = WINDOW


@contextmanager
def prepared_server(folder: Path, base_dir: Path, demo_root: Path, more: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the file with the facts of a running server; `folder` is empty and keeps the server's state.

    more  further flags of the server
    """
    roots = (demo_root, _adapters(folder / "adapters"))
    flags = [word for root in roots for word in ("--adapter-root", str(root))]
    flags += ["--base", str(base_dir), "--max-model-len", str(WINDOW), "--auth", "on"]
    flags += [f"--set=model.chat_template={_template_with_tools(folder, base_dir)}"]
    flags += [f"--set=server.max_concurrent_requests={MAX_CONCURRENT}", *more]
    log = folder / "log"
    with running_server(log, *flags) as url:
        [operator] = re.findall(r"pb_[A-Za-z0-9]{8}_[A-Za-z0-9]+", log.read_text(encoding="utf-8"))
        customer, other = _new_tenant(url, operator, "customer"), _new_tenant(url, operator, "stranger")
        _upload(url, other, "private", roots[1] / "rank-4")
        limited = {"scopes": ["infer"], "limits": {"requests_per_minute": LIMITED}}
        limited_key = _post(url, customer, "/v1/account/keys", limited)["key"]
        (folder / "scratch").mkdir()
        facts = Facts(
            url=url,
            key=customer,
            limited_key=limited_key,
            operator=operator,
            tenant="customer",
            base=base_dir.name,
            base_dir=str(base_dir),
            upload=str(demo_root / DEMO_ADAPTER),
            scratch=str(folder / "scratch"),
        )
        file = folder / "facts.json"
        file.write_text(json.dumps(dataclasses.asdict(facts)), encoding="utf-8")
        yield file


def _template_with_tools(folder: Path, base_dir: Path) -> Path:
    """Write the base's own chat template with a turn before all others that shows tools, in the form of Hermes."""
    settings = json.loads((base_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    file = folder / "template.jinja"
    file.write_text(TOOLS_TURN + settings["chat_template"], encoding="utf-8")
    return file


def _adapters(root: Path) -> Path:
    """Make adapters of the three ranks, one with a head, and one whose weights are cut short; return their folder."""
    for rank in (4, 8, 12):
        _adapter(root / f"rank-{rank}", rank)
    head = np.random.default_rng(1).standard_normal((2, HIDDEN)).astype(np.float32)
    _adapter(root / "sorter", 4, {"base_model.model.score.weight": head}, task_type="SEQ_CLS")
    (root / "sorter" / "config.json").write_text(json.dumps({"id2label": {"0": "bad", "1": "good"}}), encoding="utf-8")
    _adapter(root / "broken", 4)
    weights = root / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: 1 << 12])
    return root


def _adapter(folder: Path, rank: int, more: Mapping[str, Any] | None = None, **fields: str) -> None:
    """Write a random adapter of the queries, as PEFT writes one. `more`: tensors of numpy beside the LoRA's."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(rank)
    tensors = dict(more or {})
    for layer in range(LAYERS):
        for part, shape in (("A", (rank, HIDDEN)), ("B", (HIDDEN, rank))):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight"
            tensors[name] = (0.2 * random.standard_normal(shape)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")


def _new_tenant(url: str, operator: str, name: str) -> str:
    return str(_post(url, operator, "/admin/tenants", {"id": name})["key"]["key"])


def _upload(url: str, key: str, repository: str, folder: Path) -> None:
    """Upload an adapter as Predibase's SDK does."""
    _post(url, key, "/v2/repos", {"name": repository})
    begun = _post(url, key, "/v2/adapters/upload", {"repo": repository})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        httpx2.put(
            begun["presignedUrls"][name], content=(folder / name).read_bytes(), timeout=PATIENCE_S
        ).raise_for_status()
    headers = {"authorization": f"Bearer {key}"}
    body = {"uploadToken": begun["uploadToken"]}
    httpx2.put(f"{url}/v2/adapters/upload/", json=body, headers=headers, timeout=PATIENCE_S).raise_for_status()


def _post(url: str, key: str, path: str, body: object) -> Any:  # the reply's JSON
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{url}{path}", json=body, headers=headers, timeout=PATIENCE_S).raise_for_status().json()
