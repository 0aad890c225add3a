"""Records prompts and ids of mistral-common, and the pieces that they need, in `mistral_common.json`.

mistral-common does not fit into the environment of the tests (it wants an older numpy). In one of its own:

    python -m venv mistral && mistral/bin/pip install 'mistral-common[sentencepiece]' tokenizers jinja2
    PYTHONPATH=src:. mistral/bin/python -m tests.models.text.record_mistral_common [conversations to compare]

With a number, it compares as many random conversations over the whole vocabulary instead, and prints the differences.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from manylora.models.text.tokenizer import Tokenizer
from tests.models.text.mistral_vocabulary import RECORDED, SPECIAL, save_mistral

Conversation = list[dict[str, str]]
Merges = list[tuple[str, str]]
TEXTS = (
    *("", "Hello", "What is the capital of France?", "Paris.", " leading", "trailing ", "  two  spaces  ", "\n"),
    *("a\n\nb", "def add(a, b):\n    return a + b\n", '{"key": [1, 2.5, null]}', "naïve café – “quoted”", "你好，世界"),
    *(
        "👍🏽👨‍👩‍👧",
        "[INST] [/INST]",
        "\t\ttabs",
        "CAPS and 12345",
        "x" * 24,
        "e\u0301",
        "\u00a0\u2028",
        "¿Qué?",
        "ﬁ ﷽ ½",
    ),
)
ALPHABET = "abc XYZ  \n.,[]/INST▁é你👍0123"


def conversations(draw: random.Random, count: int) -> Iterator[Conversation]:
    """Yield conversations that end with a user: of the texts above and, beyond their number, of random characters.

    No system message is empty: mistral-common leaves such a one out, and published templates write its two line ends.
    """
    for number in range(count):
        roles = [*(["system"] if draw.random() < 0.5 else []), *(("user", "assistant") * 3)[: draw.choice((1, 3, 5))]]
        texts = [_text(draw, is_random=number >= len(TEXTS)) for _ in roles]
        turns = [{"role": role, "content": content} for role, content in zip(roles, texts, strict=True)]
        yield turns[1:] if turns[0] == {"role": "system", "content": ""} else turns


def _text(draw: random.Random, *, is_random: bool) -> str:
    if is_random and draw.random() < 0.7:
        return "".join(draw.choice(ALPHABET) for _ in range(draw.randrange(12)))
    return draw.choice(TEXTS)


class Recorder:
    """mistral-common's tokenizer of version 1, of Mistral 7B Instruct v0.1 and Mixtral 8x7B Instruct v0.1."""

    def __init__(self) -> None:
        from mistral_common.protocol.instruct import messages
        from mistral_common.protocol.instruct.request import ChatCompletionRequest
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        self._request: Any = ChatCompletionRequest
        self._kinds: dict[str, Any] = {
            "system": messages.SystemMessage,
            "user": messages.UserMessage,
            "assistant": messages.AssistantMessage,
        }
        self._tokenizer: Any = MistralTokenizer.v1()
        self.model: Any = self._tokenizer.instruct_tokenizer.tokenizer._model

    def ids(self, conversation: Conversation) -> list[int]:
        messages = [self._kinds[turn["role"]](content=turn["content"]) for turn in conversation]
        return list(self._tokenizer.encode_chat_completion(self._request(messages=messages)).tokens)

    def vocabulary(self) -> tuple[dict[str, int], Merges]:
        """Return the pieces, and the merges in the order of SentencePiece's scores."""
        model = self.model
        pieces = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
        scored = []
        for piece, number in pieces.items():
            if model.is_control(number) or model.is_unknown(number) or model.is_byte(number):
                continue
            splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
            known = [split for split in splits if split[0] in pieces and split[1] in pieces]
            known.sort(key=lambda split: (pieces[split[0]], pieces[split[1]]))
            scored += [(-model.get_score(number), split) for split in known]
        scored.sort(key=lambda each: each[0])
        return pieces, [split for _, split in scored]


def needed(pieces: Mapping[str, int], merges: Merges, texts: Sequence[str]) -> tuple[dict[str, int], Merges]:
    """Return the pieces that may occur in these texts, with the byte tokens, and their merges."""
    whole = "\0".join(f"▁{text}".replace(" ", "▁") for text in texts)
    kept = {piece: number for piece, number in pieces.items() if number < len(SPECIAL) + 256 or piece in whole}
    return kept, [(left, right) for left, right in merges if left + right in kept]


def record() -> None:
    recorder = Recorder()
    given = [each for each in conversations(random.Random(1), 2 * len(TEXTS)) if _is_accepted(recorder, each)]
    pieces, merges = recorder.vocabulary()
    with TemporaryDirectory() as folder:
        ours = Tokenizer(save_mistral(Path(folder), pieces, merges, is_metaspace=False))
        kept, kept_merges = needed(pieces, merges, [ours.apply_chat_template(each) for each in given])
    found = {
        "source": f"mistral-common {version('mistral-common')}, tokenizer v1",
        "pieces": kept,
        "merges": kept_merges,
        "conversations": [{"messages": each, "ids": recorder.ids(each)} for each in given],
    }
    RECORDED.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def _is_accepted(recorder: Recorder, conversation: Conversation) -> bool:
    """Return whether mistral-common encodes a conversation; it refuses empty replies."""
    try:
        recorder.ids(conversation)
    except Exception:  # its own validation errors
        return False
    return True


def compare(count: int) -> None:
    """Print the number of compared conversations and of those with other ids, and the first of the latter."""
    recorder = Recorder()
    pieces, merges = recorder.vocabulary()
    for is_metaspace in (False, True):
        with TemporaryDirectory() as folder:
            ours = Tokenizer(save_mistral(Path(folder), pieces, merges, is_metaspace=is_metaspace))
        compared, differences = 0, []
        for each in conversations(random.Random(2), count):
            if not _is_accepted(recorder, each):
                continue
            compared += 1
            ids = ours.encode(ours.apply_chat_template(each), add_special_tokens=False)
            if ids != recorder.ids(each):
                differences.append(each)
        sys.stdout.write(f"metaspace={is_metaspace} compared={compared} different={len(differences)}\n")
        for each in differences[:5]:
            sys.stdout.write(f"  {json.dumps(each, ensure_ascii=False)}\n")


if __name__ == "__main__":
    compare(int(sys.argv[1])) if len(sys.argv) > 1 else record()
