"""Messages between edge and engine arrive as they were sent."""

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.server.engine_client import messages as wire


def test_a_request_arrives_with_every_field_it_was_sent_with() -> None:
    sent = wire.SubmitRequest(
        7,
        Request(
            id=RequestId("r1"),
            flow=Flow("acme"),
            salt="acme",
            tokens=(1, 2, 3),
            adapter=AdapterRef(SourceName.LOCAL, "triage"),
            sampling=SamplingParams(temperature=0.5, top_k=4, logit_bias=((7, -1.5),), seed=3, num_logprobs=2),
            stop=StopParams(max_new_tokens=9, stop_token_ids=(2,), stop_strings=("end",)),
            speculation=False,
            weight=3,
        ),
    )
    assert wire.decode_operation(wire.encode(sent)) == sent
