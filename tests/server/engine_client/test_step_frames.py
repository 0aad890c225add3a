"""A step's events survive the way over the wire, whatever fields they have, and plain tokens are two small numbers."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from manylora.clock import ManualClock
from manylora.engine.events import AdapterUse, Finished, FinishReason, PromptScore, StepEvents, TokenEvent
from manylora.ids import Digest, RequestId
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.loop import pack_step
from manylora.server.engine_client.messages import decode_frame, encode
from manylora.usage import Counts
from tests.server.manual_transport import ManualTransport
from tests.server.metering.frames import request

NAMES = [RequestId(letter * 32) for letter in "abc"]
LOGPROBS = st.floats(-100, 0)
TOKENS = st.builds(
    TokenEvent,
    st.sampled_from(NAMES),
    st.integers(0, 200_000),
    st.none() | LOGPROBS,
    st.lists(st.tuples(st.integers(0, 200_000), LOGPROBS), max_size=3).map(tuple),
    st.none() | st.just(AdapterUse(digest=Digest("0" * 64), tier="on_disk", load_ms=1.5)),
    st.none() | LOGPROBS,
    st.none() | st.integers(0, 9),
    st.none()
    | st.lists(
        st.builds(PromptScore, LOGPROBS, st.just(()) | st.tuples(st.tuples(st.integers(0, 9), LOGPROBS))), max_size=2
    ).map(tuple),
)
COUNTS = Counts(prompt_tokens=3, cached_tokens=1, completion_tokens=2, computed_tokens=3)


@given(st.lists(TOKENS, max_size=12), st.sets(st.sampled_from(NAMES)))
def test_streams_get_the_events_that_the_engine_committed(tokens: list[TokenEvent], ended: set[RequestId]) -> None:
    finished = tuple(Finished(request_id=name, reason=FinishReason.LENGTH, counts=COUNTS) for name in sorted(ended))

    async def scenario() -> None:
        transport = ManualTransport()
        client = EngineClient(transport, clock=ManualClock())
        await client.start()
        streams = {name: client.generate(request(name)) for name in NAMES}
        indexes = {name: stream.index for name, stream in streams.items()}
        frame = pack_step(7, StepEvents(tuple(tokens), finished), indexes)
        transport.arrive(decode_frame(encode(frame)))
        assert transport.acknowledged == [7]
        for name, stream in streams.items():
            events = []
            while stream.is_ready:
                events.append(stream.take())
            ends = [end for end in finished if end.request_id == name]
            own = [
                token._replace(is_gained=place > 0 and tokens[place - 1].request_id == name)
                for place, token in enumerate(tokens)
                if token.request_id == name
            ]
            assert events == [*own, *ends]
            assert stream.num_gained == sum(token.is_gained for token in own)

    asyncio.run(scenario())


def test_a_plain_token_takes_a_few_bytes() -> None:
    """With the request's id it would take 44."""
    names = [RequestId(f"{number:032}") for number in range(32)]
    events = StepEvents(tuple(TokenEvent(name, 120_000) for name in names))
    frame = encode(pack_step(1_000_000, events, {name: 1000 + number for number, name in enumerate(names)}))
    assert len(frame) <= 32 * 8 + 32
