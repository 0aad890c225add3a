"""A measurement that fails is not the last one."""

import asyncio

import pytest

from manylora.ray_serve.replica.observing import observe_on


def test_an_error_of_one_measurement_ends_none_of_the_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    class Engine:
        num_measured = 0

        async def observe(self) -> None:
            self.num_measured += 1
            if self.num_measured < 3:
                raise RuntimeError("told to fail")

    async def main() -> None:
        engine = Engine()
        observing = asyncio.create_task(observe_on(engine, 0.0))
        while engine.num_measured < 5:
            assert not observing.done()
            await asyncio.sleep(0)
        observing.cancel()

    asyncio.run(main())
    assert caplog.text.count("replica.observe_failed") == 2
