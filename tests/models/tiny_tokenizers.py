"""Small tokenizers of the two families that Llama models use, trained on the spot."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, hello there",
    "naïve café – 你好 👍🏽 １２３",
] * 3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def save_byte_level(directory: Path) -> Path:
    """A GPT-2 style tokenizer: every byte has a character, a space is `Ġ`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("a b", normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|start|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def save_sentencepiece(directory: Path) -> Path:
    """A Llama-2 style tokenizer: `▁` for a space, unknown characters as byte tokens, `<s>` in front."""
    special = ["<unk>", "<s>", "</s>"]
    letters = sorted({character for text in CORPUS[:2] for character in text if character != " "})
    words = ["▁", "▁t", "he", "▁the", "ll", "llo", "hello"]
    vocab = {token: index for index, token in enumerate([*special, *BYTES, *letters, *words])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("l", "l"), ("ll", "o"), ("he", "llo")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"content": "</s>"}, "bos_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
