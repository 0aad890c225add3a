"""One named adapter as the store tracks it."""

from manylora.adapter_ref import AdapterRef
from manylora.adapters.sources.source import Located
from manylora.errors import ManyloraError
from manylora.ids import Digest, Flow
from manylora.models.text.adapter_text import NO_TEXT

NEVER = -2
NOBODY = Flow("")
"""The flow of what an operator asks for."""


class TrackedAdapter:
    """What is known of one named adapter. Forgotten when idle; the tiers know its content without it."""

    __slots__ = (
        "confirmed_s",
        "digest",
        "draining",
        "failed_turn",
        "failure",
        "flow",
        "held",
        "hits",
        "is_deleted",
        "is_kept_wanted",
        "is_pinned",
        "is_verified",
        "is_wanted",
        "job",
        "lacks_room",
        "last_use_s",
        "located",
        "located_s",
        "pin_error",
        "rank",
        "ref",
        "retry_s",
        "search",
        "since_s",
        "stage_ms",
        "text",
        "turn",
    )

    def __init__(self, ref: AdapterRef) -> None:
        self.ref = ref
        self.flow = NOBODY  # who asked for it last
        self.located: Located | None = None
        self.located_s = float("-inf")  # when the source was last asked
        self.confirmed_s = float("-inf")  # when a remote source last told its version
        self.digest: Digest | None = None  # of the located version, once it is known
        self.text = NO_TEXT  # the digest of what that version says of text
        self.search: int | None = None  # the question to its remote source, while it is under way
        self.job: int | None = None  # the load of the located version, while it is under way
        self.failure: ManyloraError | None = None
        self.retry_s = 0.0
        self.failed_turn = 0
        self.turn = NEVER  # the number of the poll before which it was last wanted
        self.since_s: float | None = None  # since when somebody has been waiting
        self.is_wanted = False  # by anyone
        self.is_kept_wanted = False  # by an operator, until it is on the device or has failed
        self.lacks_room = False  # a read of it found no room on the device
        self.is_pinned = False  # by an operator
        self.held: Digest | None = None  # the version that the operator's pin holds on the device
        self.pin_error = ""  # why that pin was given up
        self.hits = 0
        self.last_use_s: float | None = None  # on the clock
        self.is_deleted = False  # by an operator, until its source has another version
        self.draining: set[Digest] = set()  # deleted versions that requests still hold
        self.is_verified: bool | None = None  # what the last verification of its version found
        self.rank = 0
        self.stage_ms: dict[str, float] = {}  # how long each stage of its last load took
