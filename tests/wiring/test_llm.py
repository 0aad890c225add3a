"""The library: one base with adapters in a program's own process, without a server."""

import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from manylora import LLM, SamplingParams
from manylora.config.settings import Config
from manylora.engine.engine import Engine
from manylora.errors import AdapterNotFound, InvalidParameter, ModelNotFound, TaskUnsupported
from manylora.models.text.grammar import regex_grammar
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.served_model import ServedModel
from manylora.wiring.engine import ReportLine, build_engine
from tests.support.classifiers import make_classifier, oracle_classes, oracle_hidden
from tests.support.paths import ROOT
from tests.support.text_adapters import ADDED, SIZE, make_text_base, plain_adapter, speaking_adapter
from tests.support.tiny import TinyBase, make_adapter, oracle_logits

PROMPTS = ["the quick brown fox", "hello world", "hello", "over the lazy dog"]
ASKED = [{"role": "user", "content": "hello world"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    base = make_text_base(tmp_path_factory.mktemp("library") / "Tiny")
    adapters = base.directory.parent / "adapters"
    plain_adapter(base, adapters / "plain")
    speaking_adapter(base, adapters / "speaking")
    return base


@pytest.fixture(scope="module")
def llm(base: TinyBase) -> Iterator[LLM]:
    with LLM(
        base.directory, adapters=base.directory.parent / "adapters", settings={"model.kernels": "reference"}
    ) as llm:
        yield llm


def test_a_reply_is_what_transformers_and_peft_generate(llm: LLM, base: TinyBase) -> None:
    for adapter in (None, "plain"):
        output = llm.generate(PROMPTS[0], adapter, max_tokens=6)
        folder = None if adapter is None else base.directory.parent / "adapters" / adapter
        assert (output.adapter, output.finish_reason, len(output.tokens)) == (adapter, "length", 6)
        prompt = llm.generate(PROMPTS[0], adapter, max_tokens=1)
        assert output.token_ids[:1] == prompt.token_ids
        # The prompt's own tokens are what the base's tokenizer makes of it.
        from tokenizers import Tokenizer

        tokens = Tokenizer.from_file(str(base.directory / "tokenizer.json")).encode(PROMPTS[0]).ids
        assert output.prompt_tokens == len(tokens)
        for found in output.token_ids:
            assert found == int(torch.argmax(oracle_logits(base, folder, tokens)[-1]))
            tokens.append(found)


@pytest.mark.parametrize("adapter", [None, "plain"])
def test_an_embedding_is_the_mean_hidden_state_of_transformers(llm: LLM, base: TinyBase, adapter: str | None) -> None:
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(base.directory / "tokenizer.json")).encode(PROMPTS[0]).ids
    folder = None if adapter is None else base.directory.parent / "adapters" / adapter
    mean = oracle_hidden(base, folder, tokens).mean(dim=0)
    vectors = llm.embed(PROMPTS[:2], adapter)
    assert len(vectors) == 2
    assert (torch.tensor(vectors[0]) - mean / mean.norm()).abs().max() <= 2e-5


def test_classes_are_the_probabilities_of_transformers(llm: LLM, base: TinyBase) -> None:
    from tokenizers import Tokenizer

    folder = base.directory.parent / "adapters" / "judge"
    make_classifier(base, folder, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"), 3)
    (folder / "config.json").write_text('{"id2label": {"0": "bad", "1": "fair", "2": "good"}}', encoding="utf-8")
    found = llm.classify(PROMPTS[:2], "judge")
    for text, classes in zip(PROMPTS, found, strict=False):
        tokens = Tokenizer.from_file(str(base.directory / "tokenizer.json")).encode(text).ids
        expected = torch.softmax(oracle_classes(base, folder, "SEQ_CLS", 3, tokens), dim=-1)
        assert list(classes) == ["bad", "fair", "good"]
        assert (torch.tensor(list(classes.values())) - expected).abs().max() <= 2e-5
    with pytest.raises(TaskUnsupported, match="'plain' has no classification head"):
        llm.classify(PROMPTS, "plain")


def test_a_batch_of_adapters_gives_each_prompt_what_it_gets_alone(llm: LLM) -> None:
    names = [None, "plain", "speaking", "plain"]
    together = llm.generate(PROMPTS, names, max_tokens=8)
    alone = [llm.generate(prompt, name, max_tokens=8) for prompt, name in zip(PROMPTS, names, strict=True)]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert [output.adapter for output in together] == names


def test_more_prompts_than_may_run_are_all_answered(llm: LLM) -> None:
    prompts = [f"hello {number}" for number in range(150)]
    outputs = llm.generate(prompts, "plain", max_tokens=2)
    assert [len(output.tokens) for output in outputs] == [2] * 150


def test_a_stream_is_the_reply_in_pieces(llm: LLM) -> None:
    assert (
        "".join(llm.stream(PROMPTS[1], "plain", max_tokens=9)) == llm.generate(PROMPTS[1], "plain", max_tokens=9).text
    )
    assert "".join(llm.stream(ASKED, "speaking", max_tokens=9)) == llm.chat(ASKED, "speaking", max_tokens=9).text


def test_a_stream_that_is_left_ends(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], max_tokens=200)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # an iterator that is a generator
    assert llm.generate("hello", max_tokens=1).finish_reason == "length"


def test_a_conversation_has_the_template_of_its_adapter(llm: LLM) -> None:
    base, own = llm.chat([ASKED, ASKED], [None, "speaking"], max_tokens=4)
    assert base.prompt_tokens == llm.generate("[user]hello world", max_tokens=1).prompt_tokens
    assert own.prompt_tokens != base.prompt_tokens
    assert llm.chat(ASKED, max_tokens=4).token_ids == base.token_ids


def test_a_seed_repeats_a_draw_and_each_prompt_has_its_own(llm: LLM) -> None:
    warm = SamplingParams(temperature=1.0)
    first, second = (llm.generate(["hello"] * 3, max_tokens=12, sampling=warm, seed=5) for _ in range(2))
    assert [output.token_ids for output in first] == [output.token_ids for output in second]
    assert len({tuple(output.token_ids) for output in first}) == 3


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[0], max_tokens=12).text
    stop = whole[3:5]
    cut = llm.generate(PROMPTS[0], max_tokens=12, stop=[stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_log_probabilities_come_where_they_are_asked_for(llm: LLM) -> None:
    output = llm.generate("hello", max_tokens=2, sampling=SamplingParams(temperature=0.0, num_logprobs=3))
    assert [len(token.alternatives) for token in output.tokens] == [3, 3]
    assert all(token.logprob is not None and token.logprob <= 0 for token in output.tokens)


def test_threads_share_the_steps(llm: LLM) -> None:
    expected = llm.generate(PROMPTS, "plain", max_tokens=5)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda prompt: llm.generate(prompt, "plain", max_tokens=5), PROMPTS))
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "`temperature` is no option"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1. Given: 0"),
        ({"sampling": SamplingParams(temperature=-1.0)}, "`temperature` must be at least 0"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "`temperature` must be at least 0"),
        ({"sampling": SamplingParams(top_p=0.0)}, "`top_p` must be above 0"),
        ({"sampling": SamplingParams(num_logprobs=21)}, "`num_logprobs` must be from 0 to 20"),
        ({"sampling": SamplingParams(logit_bias=((99_999, 1.0),))}, "token ids must be < 331"),
        ({"sampling": SamplingParams(logit_bias=((-1, 1.0),))}, "token ids must be at least 0"),
    ],
)
def test_an_option_that_is_unknown_or_out_of_range_is_refused(
    llm: LLM, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidParameter, match=message):
        llm.generate("hello", **options)  # type: ignore[call-overload]  # wrong on purpose


def test_wrong_names_are_refused_and_others_go_on(llm: LLM) -> None:
    with pytest.raises(AdapterNotFound):
        llm.generate("hello", "missing")
    with pytest.raises(InvalidParameter, match="2 names for 1 prompts"):
        llm.generate(["hello"], ["plain", "plain"])
    with pytest.raises(InvalidParameter, match="not both"):
        llm.chat([*ASKED, ASKED])  # type: ignore[list-item]  # wrong on purpose
    assert llm.generate("hello", "plain", max_tokens=1).tokens


def test_a_closed_model_keeps_no_engine_and_says_that_it_is_closed(
    base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[weakref.ref[Engine]] = []

    def build(config: Config, report: ReportLine) -> tuple[Engine, ServedModel]:
        engine, served = build_engine(config, report)
        engines.append(weakref.ref(engine))
        return engine, served

    monkeypatch.setattr("manylora.wiring.llm.build_engine", build)
    llm = LLM(base.directory, settings={"model.cache_dir": str(tmp_path), "model.kernels": "reference"})
    assert llm.generate("hello", max_tokens=1).tokens
    llm.close()
    assert [engine() for engine in engines] == [None]
    llm.close()
    with pytest.raises(InvalidParameter, match="closed"):
        llm.generate("hello")
    with pytest.raises(ModelNotFound):
        LLM(tmp_path / "nowhere")


def test_a_start_that_fails_leaves_neither_its_thread_nor_its_engine_s(
    base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = EngineClient.start

    async def started_and_failed(client: EngineClient) -> None:
        await start(client)
        raise ModelNotFound("no such base")

    monkeypatch.setattr(EngineClient, "start", started_and_failed)
    before = {thread.ident for thread in threading.enumerate()}
    with pytest.raises(ModelNotFound):
        LLM(base.directory, settings={"model.cache_dir": str(tmp_path), "model.kernels": "reference"})
    names = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert [name for name in names if name.startswith("manylora-")] == []


def test_the_package_imports_without_torch() -> None:
    code = "import sys, manylora; manylora.SamplingParams; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.long
@pytest.mark.base
def test_the_lines_in_readme_run(base_dir: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "LLM(" in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout


def test_several_adapters_apply_together(llm: LLM, base: TinyBase) -> None:
    again = base.directory.parent / "adapters" / "again"
    make_adapter(base, again, LoraConfig(r=3, target_modules=["q_proj", "down_proj"]), seed=7)
    mixed = llm.generate(PROMPTS, {"plain": 0.75, "again": 1.5}, max_tokens=8)
    assert mixed[0].adapter == "plain,again"
    beside = llm.generate(PROMPTS[0], {"plain": 0.75, "again": 1.5}, max_tokens=8)
    assert beside.token_ids == mixed[0].token_ids
    alone = [llm.generate(PROMPTS[0], name, max_tokens=8).token_ids for name in (None, "plain", "again")]
    assert beside.token_ids not in alone
    nothing = llm.generate(PROMPTS[0], {"plain": 0.0, "again": 0.0}, max_tokens=8)
    assert nothing.token_ids == alone[0]
    assert llm.generate(PROMPTS[0], {"plain": 1.0}, max_tokens=8).token_ids == alone[1]
    with pytest.raises(InvalidParameter, match=r"`adapters\[1\].weight` must be between -1000 and 1000. Given: nan"):
        llm.generate(PROMPTS[0], {"plain": 1.0, "again": float("nan")})
    with pytest.raises(AdapterNotFound, match="absent"):
        llm.generate(PROMPTS[0], {"plain": 1.0, "absent": 1.0})
    with pytest.raises(InvalidParameter, match="have different tokenizers, chat templates or ends"):
        llm.generate(PROMPTS[0], {"plain": 1.0, "speaking": 1.0})


def test_a_grammar_holds_for_an_adapter_with_its_own_tokens_beside_rows_of_the_base(llm: LLM) -> None:
    names = ["speaking", None, "plain", "speaking"]
    grammar, sampling = regex_grammar("(two words|x)[a-c]{2,4}"), SamplingParams(temperature=1.0)
    outputs = llm.generate(["hello"] * 4, names, grammar=grammar, sampling=sampling, seed=3, max_tokens=20)
    assert [output.text for output in outputs if not re.fullmatch("(two words|x)[a-c]{2,4}", output.text)] == []
    spoken = SIZE + [token.content for token in ADDED].index("two words")
    alone = SamplingParams(temperature=0.0, allowed_token_ids=(spoken,))
    output = llm.generate("hello", "speaking", grammar=regex_grammar("two words|x"), sampling=alone)
    assert (output.token_ids, output.text, output.finish_reason) == ([spoken], "two words", "stop")
