"""A base on several ranks, each a process: the same replies as one process, and one end for all of them."""

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from manylora import LLM, SamplingParams
from manylora.config.declaration import Setting
from manylora.errors import ConfigInvalid, RankLost
from tests.support.text_adapters import make_text_base, plain_adapter, speaking_adapter
from tests.support.tiny import TinyBase
from tests.support.waiting import has_word

PROMPTS = ["the quick brown fox", "hello world", "hello", "over the lazy dog"]
NAMES = [None, "plain", "speaking", "plain"]
SETTINGS: dict[str, Setting] = {"model.kernels": "reference", "model.rank_timeout_s": 60.0}


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
    return [child.pid for child in psutil.Process().children() if has_word(child, "manylora.wiring.rank_main")]


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
