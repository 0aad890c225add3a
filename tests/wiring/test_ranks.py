"""A base on several ranks, each a process: the same replies as one process, and one end for all of them."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from manylora import LLM, SamplingParams
from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.engine.execution.ranks.commands import CommandKind
from manylora.engine.execution.ranks.group import new_meeting
from manylora.engine.execution.ranks.processes import RankProcesses
from manylora.errors import ConfigInvalid, ModelUnsupported, RankLost, StartupError
from manylora.kernels.select import select_kernels
from manylora.models.spec import read_spec
from manylora.wiring.ranks import RankFacts, Ranks, RankSizes, start_failure, starting
from tests.models.checkpoints.test_quantized import save_quantized
from tests.support.text_adapters import make_text_base, plain_adapter, speaking_adapter
from tests.support.tiny import TinyBase
from tests.support.waiting import has_word

PROMPTS = ["the quick brown fox", "hello world", "hello", "over the lazy dog"]
NAMES = [None, "plain", "speaking", "plain"]
SETTINGS: dict[str, Setting] = {"model.kernels": "reference", "model.rank_timeout_s": 25.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    base = make_text_base(tmp_path_factory.mktemp("ranks") / "Tiny")
    plain_adapter(base, base.directory.parent / "adapters" / "plain")
    speaking_adapter(base, base.directory.parent / "adapters" / "speaking")
    return base


@contextlib.contextmanager
def served(base: TinyBase, ranks: int, **settings: Setting) -> Iterator[LLM]:
    own = {**SETTINGS, "model.tensor_parallel": ranks, **settings}
    with LLM(base.directory, adapters=base.directory.parent / "adapters", settings=own) as llm:
        yield llm


def test_two_ranks_give_the_replies_of_one_process(base: TinyBase) -> None:
    sampling = SamplingParams(temperature=0.0, num_logprobs=5)
    with served(base, 1) as one, served(base, 2) as two:
        expected, found = (llm.generate(PROMPTS, NAMES, max_tokens=8, sampling=sampling) for llm in (one, two))
        embedded = one.embed(PROMPTS, "plain"), two.embed(PROMPTS, "plain")
        pids = rank_pids()
        assert len(pids) == 1
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    for output, wanted in zip(found, expected, strict=True):
        for token, other in zip(output.tokens, wanted.tokens, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
    for vector, same in zip(*embedded, strict=True):
        assert vector == pytest.approx(same, abs=1e-5)
    assert not any(map(psutil.pid_exists, pids))


def rank_pids() -> list[int]:
    return [process.pid for process in rank_processes(os.getpid())]


def rank_processes(parent: int) -> list[Any]:  # psutil has no types
    return [child for child in psutil.Process(parent).children() if has_word(child, "manylora.wiring.rank_main")]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_the_loss_of_a_rank_ends_its_requests_and_every_later_one(base: TinyBase, number: signal.Signals) -> None:
    with served(base, 2, **{"model.rank_timeout_s": 10.0}) as llm:
        llm.generate(PROMPTS[0], max_tokens=1)
        [pid] = rank_pids()
        os.kill(pid, number)
        for _ in range(2):
            with pytest.raises(RankLost, match=r"has lost .*repeat the request"):
                llm.generate(PROMPTS, NAMES, max_tokens=8)
        assert rank_pids() == []


def test_a_degree_that_does_not_divide_the_base_is_refused_before_a_process_starts(base: TinyBase) -> None:
    with (
        pytest.raises(
            ConfigInvalid, match="degree 4 does not divide the 6 attention heads; degrees of this base: 1, 2"
        ),
        served(base, 4),
    ):
        pass
    assert rank_pids() == []


def test_a_group_of_four_bits_on_two_ranks_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    save_quantized(tmp_path, "w4a16-32")
    config = load_config(flags={"model.tensor_parallel": 4}, environ={})
    kernels = select_kernels("native", 1, quantize="int4")
    with (
        pytest.raises(ModelUnsupported, match="groups of 32 inputs, and 16 inputs a rank cut one"),
        starting(config, read_spec(tmp_path), tmp_path, kernels),
    ):
        pass
    assert rank_pids() == []


@pytest.mark.long
def test_a_rank_that_cannot_start_is_named(base: TinyBase, tmp_path: Path) -> None:
    spec = read_spec(base.directory)
    config = load_config(flags={**SETTINGS, "model.tensor_parallel": 2}, environ={})
    sizes = RankSizes(kv_blocks=8, block_size=16, max_positions=64, max_rows=config.engine.max_step_tokens)
    facts = RankFacts(fingerprint="0" * 64, degree=2, kernels="reference (float32 weights)", torch="other")
    for directory, said in (
        (tmp_path, "rank 1 of 2: .* has no config.json"),
        (base.directory, "rank 1 of 2 has fingerprint [0-9a-f]{64}, and rank 0 has 0{64}"),
    ):
        ranks = Ranks(config, spec, directory, new_meeting())
        with pytest.raises(StartupError, match=said):
            ranks.join(facts, sizes)
        ranks.abandon()
        assert rank_pids() == []


def test_a_program_that_ends_at_once_is_named() -> None:
    ranks = RankProcesses("manylora.no_such_module", 2, 10.0)
    with pytest.raises(StartupError, match="rank 1 of 2 ended before it was ready with exit code 1"):
        ranks.replies(CommandKind.HELLO, start_failure)
    ranks.end()


PROGRAM = """
import sys
from manylora import LLM
llm = LLM(sys.argv[1], settings={"model.kernels": "reference", "model.tensor_parallel": 2})
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_ranks_end_with_a_program_that_is_killed(base: TinyBase) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(base.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        while program.stdout.readline() != "up\n":
            assert program.poll() is None
        ranks = rank_processes(program.pid)
        assert len(ranks) == 1
        program.kill()
    assert psutil.wait_procs(ranks, timeout=30)[1] == []
