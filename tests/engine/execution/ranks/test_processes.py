"""The cause of a loss is named before the ranks that ended after it."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from manylora.engine.execution.ranks.commands import Command, CommandKind, CommandSocket
from manylora.engine.execution.ranks.processes import LOST_OTHERS, RankProcesses, _Rank
from manylora.errors import StartupError
from manylora.failure import Failure

STOPPED = "print(flush=True); sys.stdin.read()"


class Programs(RankProcesses):
    """Ranks with programs of the test's; an exit code stands for a program that ends with it."""

    def __init__(self, *programs: str | int) -> None:
        super().__init__("manylora.no_such_module", 1, 10.0)
        self.size = 1 + len(programs)
        self.ends: list[CommandSocket] = []
        for number, program in enumerate(programs, 1):
            ours, theirs = socket.socketpair()
            text = f"import sys; {program if isinstance(program, str) else f'sys.exit({program})'}"
            process = subprocess.Popen([sys.executable, "-S", "-c", text], stdin=subprocess.PIPE)
            self._ranks.append(_Rank(number, process, CommandSocket(ours)))
            self.ends.append(CommandSocket(theirs))
            if isinstance(program, int):
                process.wait(60)

    def end(self) -> None:
        super().end()
        for rank, theirs in zip(self._ranks, self.ends, strict=True):
            assert rank.process.stdin is not None
            rank.process.stdin.close()
            theirs.close()


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Iterator[Programs]:
    ranks = Programs(*request.param)
    yield ranks
    ranks.end()


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        ((LOST_OTHERS, 1, LOST_OTHERS), "has lost rank 2 of 4 with exit code 1; what it printed is above; all"),
        ((LOST_OTHERS, STOPPED), "has lost rank 2 of 3, which does not answer; all"),
        ((LOST_OTHERS, LOST_OTHERS), "has lost one of the 3 ranks; all"),
        ((STOPPED,), "has lost one of the 2 ranks; all"),
    ],
    indirect=["opened"],
)
def test_a_loss_names_its_cause(opened: Programs, said: str) -> None:
    assert said in opened.lose("the test").message


def failed(text: str) -> Command:
    return Command.of_text(CommandKind.FAILED, json.dumps(Failure.of(StartupError(text)).to_json()).encode())


def failure_of(text: bytes) -> StartupError:
    error = Failure.from_json(json.loads(text)).to_error()
    assert isinstance(error, StartupError)
    return error


@pytest.mark.parametrize("opened", [(LOST_OTHERS, 1, STOPPED)], indirect=True)
def test_a_failure_before_the_ranks_have_met_names_its_cause(opened: Programs) -> None:
    opened.ends[0].send(failed("lost the others"))
    opened.ends[1].send(failed("no memory"))
    assert str(opened.failure(failure_of)) == "rank 2 of 4: no memory"


@pytest.mark.parametrize("opened", [(STOPPED,)], indirect=True)
def test_ranks_that_live_have_no_failure(opened: Programs) -> None:
    assert opened.failure(failure_of) is None
