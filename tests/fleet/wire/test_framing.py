"""The time that a message may take on a connection: its length matters not, the silence of the peer does."""

import asyncio

import pytest

from manylora.fleet.wire.framing import LENGTH, OPERATION_BYTES, LinkBroken, read_message


@pytest.mark.parametrize(("pause_s", "arrives"), [(6.0, True), (11.0, False)])
def test_a_long_message_may_take_time_and_a_silent_peer_may_not(pause_s: float, arrives: bool) -> None:
    now_s = 0.0

    async def main() -> bytes:
        nonlocal now_s
        asyncio.get_running_loop().time = lambda: now_s  # type: ignore[method-assign]
        reader = asyncio.StreamReader()
        reading = asyncio.create_task(read_message(reader, OPERATION_BYTES, silence_s=10.0))
        for part in (LENGTH.pack(6), b"ab", b"cd", b"ef"):
            for moment_s in (now_s, now_s + pause_s):
                now_s = moment_s
                for _ in range(5):
                    await asyncio.sleep(0)
            reader.feed_data(part)
        return await reading

    if arrives:
        assert asyncio.run(main()) == b"abcdef"
    else:
        with pytest.raises(LinkBroken, match="it is silent"):
            asyncio.run(main())
