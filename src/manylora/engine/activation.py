"""The position in a prompt from which an activated LoRA applies.

The adapter is active from the start of the last occurrence of its invocation tokens in the prompt to the end of the
reply. Rows before that are the base's, keys and values too, so that requests to the base share them. An adapter whose
tokens a prompt lacks is not active in it at all.  Source: Greenewald et al., arXiv 2504.12397.
"""

from collections.abc import Sequence


def active_from(prompt: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Return the first position with the adapter; None if the invocation does not occur.

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
