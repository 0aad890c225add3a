"""Looks at the replicas of a placer, side by side: one that does not answer delays no other."""

import asyncio
import logging
from collections.abc import Mapping

from manylora.control.deployments.placer import Placer
from manylora.control.deployments.replicas import Sight
from manylora.errors import ManyloraError

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds that a round waits for the looks; one that takes longer counts as silent, and goes on."""

Found = tuple[Sight, str]
"""The state of a replica's process and, of one that is gone, its last words."""


class Looks:
    """The looks that are under way. It belongs to one event loop."""

    def __init__(self, placer: Placer, *, wait_s: float = LOOK_S) -> None:
        self._placer = placer
        self._wait_s = wait_s
        self._under_way: dict[str, asyncio.Task[Found]] = {}

    async def at(self, urls: Mapping[str, str]) -> dict[str, Found]:
        """Return how replicas are now, by their ids. `urls` has the URL of each."""
        for name in [each for each in self._under_way if each not in urls]:
            self._under_way.pop(name).cancel()  # another control plane has noted its end
        for name, url in urls.items():
            if name not in self._under_way:
                self._under_way[name] = asyncio.create_task(self._placer.sight(name, url))
        looks = {name: self._under_way[name] for name in urls}
        if looks:
            await asyncio.wait(looks.values(), timeout=self._wait_s)
        return {name: self._found(name, look) for name, look in looks.items()}

    def _found(self, name: str, look: "asyncio.Task[Found]") -> Found:
        if not look.done():
            return Sight.SILENT, ""
        del self._under_way[name]
        try:
            return look.result()
        except (OSError, ManyloraError) as error:  # the machine refuses the look, which is no end of the process
            log.warning("placing.look_failed replica=%s error=%s", name, error)
            return Sight.SILENT, ""

    async def stop(self) -> None:
        for look in self._under_way.values():
            look.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        self._under_way.clear()
