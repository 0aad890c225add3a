"""Items of a streamed call: each has the steps of one request since the item before, one frame a step."""

from collections.abc import Iterable, Sequence

import msgspec

from manylora.engine.events import Finished, StepEvents, TokenEvent
from manylora.ids import RequestId
from manylora.server.engine_client.loop import pack_step
from manylora.server.engine_client.messages import StepFrame

ACCEPTED = b""
"""The first item of a call: the replica has the request."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[StepFrame]] = msgspec.msgpack.Decoder(list[StepFrame])


def item_of(index: int, request_id: RequestId, events: Sequence[TokenEvent | Finished]) -> bytes:
    """Return the item of a request's events, under the number that its edge gave the request."""
    indexes = {request_id: index}
    return _encoder.encode([pack_step(0, step, indexes) for step in _steps(events)])


def frames_of(item: bytes) -> list[StepFrame]:
    """Return the frames in an item. Raises `msgspec.MsgspecError` for bytes that are no item."""
    return [] if item == ACCEPTED else _decoder.decode(item)


def _steps(events: Iterable[TokenEvent | Finished]) -> list[StepEvents]:
    """Divide events by steps: a token that is not gained begins one, and the end belongs to the last one."""
    steps: list[tuple[list[TokenEvent], list[Finished]]] = []
    for event in events:
        if isinstance(event, Finished):
            steps = steps or [([], [])]
            steps[-1][1].append(event)
        elif event.is_gained and steps:
            steps[-1][0].append(event)
        else:
            steps.append(([event], []))
    return [StepEvents(tuple(tokens), tuple(ends)) for tokens, ends in steps]
