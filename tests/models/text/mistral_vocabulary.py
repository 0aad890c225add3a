"""Tokenizers with Mistral's published pieces: `tokenizer.json` in the two forms that circulate."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.models.text.chat_formats import MISTRAL

SPECIAL = ("<unk>", "<s>", "</s>")
RECORDED = Path(__file__).with_name("mistral_common.json")
SPACED = MISTRAL.replace('"[INST] "', '" [INST] "')
"""The template of files whose tokenizer puts a space before the first word of a text alone."""


def save_mistral(
    directory: Path, pieces: Mapping[str, int], merges: Sequence[tuple[str, str]], *, is_metaspace: bool
) -> Path:
    """Write a base's text files with these pieces.

    is_metaspace  the space before the first word comes from a pre-tokenizer, once a text; else from a normalizer, once
                  a part between special tokens
    """
    tokenizer = Tokenizer(
        models.BPE(vocab=dict(pieces), merges=list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if is_metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": SPACED if is_metaspace else MISTRAL,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
