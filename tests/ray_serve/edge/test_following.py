"""The list of replicas outlives errors of Ray's controller."""

import asyncio
import importlib
import importlib.util
import warnings
from typing import Any

import pytest

from manylora.fleet.edge.replicas import ListedReplicas
from tests.conftest import missing

pytestmark = pytest.mark.long  # imports Ray

SIGNALS = [{"endpoint": "10.0.0.1:7070", "draining": False}, {"endpoint": "10.0.0.2:7070", "draining": True}]


@pytest.fixture(scope="module", autouse=True)
def ray_is_here() -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic tells Ray of deprecations
        importlib.import_module("ray.serve")


class Handle:
    """Answers the first call, and fails in each later one."""

    def __init__(self, failure: Exception) -> None:
        self.calls = 0
        self._failure = failure

    def broadcast(self, method: str) -> "Handle":
        assert method == "signal"
        self.calls += 1
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        if self.calls > 1:
            raise self._failure
        return SIGNALS


@pytest.mark.parametrize("kind", ["RayActorError", "RayServeException", "TimeoutError", "KeyError"])
def test_errors_of_the_controller_change_no_list(kind: str) -> None:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import RayServeException

    from manylora.ray_serve.edge.following import follow

    failures = [RayActorError(), RayServeException("no controller"), TimeoutError(), KeyError("odd")]
    (failure,) = [each for each in failures if type(each).__name__ == kind]

    async def main() -> None:
        replicas, handle = ListedReplicas(), Handle(failure)
        following = asyncio.create_task(follow(handle, replicas, every_s=0))
        while handle.calls < 3:  # noqa: ASYNC110  each call is one turn of the loop
            await asyncio.sleep(0)
        following.cancel()
        assert replicas.addresses() == ("10.0.0.1:7070",)

    asyncio.run(main())
