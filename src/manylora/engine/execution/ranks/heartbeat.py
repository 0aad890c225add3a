"""The heartbeat of the ranks behind the first while no step runs, which finds one that is stopped or stuck."""

from manylora.clock import Clock
from manylora.engine.execution.ranks.commands import Command, CommandKind
from manylora.engine.execution.ranks.processes import RankProcesses

BEAT_S = 2.0
"""Seconds from one beat to the next."""


class RankHeartbeat:
    """A beat goes through each rank's stream of commands and comes back on its own: it takes no collective.

    A rank answers it after the commands before it. Time between two calls that are further apart than `BEAT_S` counts
    for no rank: a step has a limit of its own, and a frozen machine runs rank 0 again before the others have answered.
    """

    def __init__(self, ranks: RankProcesses, clock: Clock) -> None:
        self._ranks = ranks
        self._clock = clock
        self._sent_s = self._tended_s = clock.monotonic_s()
        self._awaited: set[int] = set()

    def tend(self) -> None:
        """Take the answers that have come, and send the next beat when it is due; called while no step runs.

        Raises: `RankLost` that names the ranks which have not answered for the `timeout_s` of their processes
        """
        self._awaited -= self._ranks.take_beats()
        now_s = self._clock.monotonic_s()
        if now_s - self._tended_s > BEAT_S:
            self._sent_s = now_s
        self._tended_s = now_s
        silent_s = now_s - self._sent_s
        if self._awaited and silent_s >= self._ranks.timeout_s:
            raise self._ranks.lose("it does not answer a beat", self._awaited)
        if not self._awaited and silent_s >= BEAT_S:
            self._sent_s = now_s
            self._awaited = set(range(1, self._ranks.size))
            self._ranks.send(Command(CommandKind.BEAT))
