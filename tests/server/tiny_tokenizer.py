"""A byte-level tokenizer of 256 bytes and three special tokens, with a chat template: one byte, one token."""

import json
from functools import cache
from pathlib import Path

BOS, EOS, UNK = 256, 257, 258
VOCAB_SIZE = 259
CHAT_TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{% if m['content'] == 'RAISE' %}{{ raise_exception('told to raise') }}{% endif %}"
    "<s>{{ m['role'] }}\n{{ m['content'] }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)


@cache
def _alphabet() -> tuple[str, ...]:
    """The character that stands for each byte in a byte-level vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in shown}
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(256 + sum(other not in shown for other in range(byte)))
    return tuple(characters[byte] for byte in range(256))


def save_tokenizer(directory: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Write tokenizer.json and tokenizer_config.json; the id of a byte is the byte."""
    specials = [
        {
            "id": number,
            "content": text,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for number, text in ((BOS, "<s>"), (EOS, "</s>"), (UNK, "<unk>"))
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {character: byte for byte, character in enumerate(_alphabet())}
            | {"<s>": BOS, "</s>": EOS, "<unk>": UNK},
            "merges": [],
        },
    }
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": chat_template}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
