"""The position in a prompt from which an activated LoRA applies.

From the start of the last occurrence of its invocation tokens in the prompt to the end of all that is generated the
adapter is active; before that every row is the base's, keys and values too, so that they are shared with requests to
the base. A prompt without these tokens is the base's throughout.  Source: Greenewald et al., arXiv 2504.12397.
"""

from collections.abc import Sequence


def active_from(prompt: Sequence[int], invocation: Sequence[int]) -> int | None:
    """The first position with the adapter; None if the invocation does not occur.

    An adapter without invocation tokens is active from the first position on.
    """
    wanted = tuple(invocation)
    if not wanted:
        return 0
    for start in range(len(prompt) - len(wanted), -1, -1):
        # The first token alone rules out nearly every position, and costs a tenth of a slice.
        if prompt[start] == wanted[0] and tuple(prompt[start : start + len(wanted)]) == wanted:
            return start
    return None
