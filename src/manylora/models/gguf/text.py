"""The tokenizer in a GGUF file's metadata, written as the files that the model's own repository has. Without torch.

Byte-level BPE is split into words by the expression that `tokenizer.ggml.pre` names; SentencePiece BPE is merged in the
order of its scores. Each gives the tokens of the model's own tokenizer.json; every other kind is refused.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from manylora.errors import ModelUnsupported
from manylora.models.gguf.model import GgufFields

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # token types
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "▁"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_tokenizer(directory: Path, fields: GgufFields, pre: str | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json into `directory`.

    Args:    pre, the name of the expression for words; None: the file's own
    Raises:  `ModelUnsupported` for a kind of tokenizer or of words that is not converted
    """
    tokens = _tokens(fields)
    try:
        library = _library(fields, tokens, pre)
    except ModelUnsupported:
        raise
    except Exception as error:  # the library raises bare Exception
        raise _refused(fields, str(error)) from error
    library.save(str(directory / "tokenizer.json"))
    ids = {name: fields.get(f"tokenizer.ggml.{ours}_token_id") for name, ours in _NAMED.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokens[token_id] for name, token_id in ids.items() if token_id is not None},
        "model_max_length": fields.size("context_length"),
        "clean_up_tokenization_spaces": False,
    }
    if (template := fields.get("tokenizer.chat_template")) is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _library(fields: GgufFields, tokens: list[str], pre: str | None) -> Tokenizer:
    kind = fields.required("tokenizer.ggml.model")
    if kind == "gpt2":
        library, adds_start = _byte_level(fields, pre or fields.get("tokenizer.ggml.pre"))
    elif kind == "llama":
        library, adds_start = _sentencepiece(fields), True
    else:
        raise _refused(fields, f"tokenizer.ggml.model = {kind!r}")
    _add_tokens(library, fields, tokens)
    _add_affixes(library, fields, tokens, adds_start=adds_start)
    return library


def _refused(fields: GgufFields, what: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"{fields.file}: the tokenizer cannot be converted ({what}): put the model's own tokenizer.json and "
        "tokenizer_config.json beside the file"
    )


def _tokens(fields: GgufFields) -> list[str]:
    tokens, kinds = fields.required("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _refused(fields, "tokenizer.ggml.tokens is no list of texts")
    if kinds is not None and len(kinds) != len(tokens):
        raise _refused(fields, f"{len(kinds)} token types for {len(tokens)} tokens")
    for name in (*_NAMED.values(), "eot"):
        token_id = fields.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None and not (type(token_id) is int and 0 <= token_id < len(tokens)):
            raise _refused(fields, f"tokenizer.ggml.{name}_token_id = {token_id} of {len(tokens)} tokens")
    return tokens


def _kinds(fields: GgufFields) -> list[int]:
    return list(fields.get("tokenizer.ggml.token_type") or ())


def _vocabulary(fields: GgufFields) -> dict[str, int]:
    """Return the ids of the tokens; padding rows of the embedding at the end are no tokens."""
    tokens, kinds = _tokens(fields), _kinds(fields)
    last = len(tokens)
    while kinds and last and kinds[last - 1] == _UNUSED:
        last -= 1
    vocabulary = {token: index for index, token in enumerate(tokens[:last])}
    if len(vocabulary) != last:
        raise _refused(fields, "a token occurs twice in tokenizer.ggml.tokens")
    return vocabulary


# ── byte-level BPE ───────────────────────────────────────────────────────────────────────────────────────────────────


def _byte_level(fields: GgufFields, pre: str | None) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether it adds the first token unless the metadata says otherwise."""
    if pre not in _WORDS_OF and pre not in _OLDER_NAMES:
        known = ", ".join(_WORDS_OF)
        raise _refused(fields, f"tokenizer.ggml.pre = {pre!r}; known: {known}")
    merges = [tuple(merge.split(" ")) for merge in fields.required("tokenizer.ggml.merges")]
    pre = _OLDER_NAMES.get(pre, pre)
    is_llama3 = pre == "llama-bpe"
    library = Tokenizer(models.BPE(vocab=_vocabulary(fields), merges=merges, ignore_merges=is_llama3))
    if pre == "qwen2":
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = _WORDS_OF[pre]()
    library.decoder = decoders.ByteLevel()
    return library, is_llama3


def _by_expression(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_WORDS_OF: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "llama-bpe": lambda: _by_expression(_CONTRACTIONS + _WORDS % "{1,3}"),
    "qwen2": lambda: _by_expression(_CONTRACTIONS + _WORDS % ""),
}
"""The expressions for words, as the models' own tokenizer.json files have them."""
_OLDER_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
"""Other names of an expression, which llama.cpp reads too."""


# ── SentencePiece BPE ────────────────────────────────────────────────────────────────────────────────────────────────


def _sentencepiece(fields: GgufFields) -> Tokenizer:
    """Return the tokenizer of Llama 2's form: the pieces' scores are the order in which pairs merge."""
    for name, neutral in (("remove_extra_whitespaces", False), ("precompiled_charsmap", [])):
        if fields.get(f"tokenizer.ggml.{name}", neutral) != neutral:
            raise _refused(fields, f"tokenizer.ggml.{name} changes the text")
    tokens, scores = _tokens(fields), fields.required("tokenizer.ggml.scores")
    unknown = fields.get("tokenizer.ggml.unknown_token_id", 0)
    vocabulary = _vocabulary(fields)
    merges = _merges_by_score(vocabulary, scores, _kinds(fields))
    library = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=tokens[unknown], byte_fallback=True, fuse_unk=True)
    )
    leads = fields.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    library.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces] if leads else [spaces])
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if leads else parts)
    return library


def _merges_by_score(vocabulary: dict[str, int], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Return the pairs that make a piece, those of the piece with the highest score first."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        if kinds and kinds[index] in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]


# ── added tokens ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_tokens(library: Tokenizer, fields: GgufFields, tokens: list[str]) -> None:
    special: list[AddedToken] = []
    others: list[AddedToken] = []
    for token, kind in zip(tokens, _kinds(fields), strict=False):
        if kind in (_UNKNOWN, _CONTROL):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            others.append(AddedToken(token, special=False, normalized=False))
    library.add_special_tokens(special)
    library.add_tokens(others)


def _add_affixes(library: Tokenizer, fields: GgufFields, tokens: list[str], *, adds_start: bool) -> None:
    """Set the tokens that lead and end a text."""
    before, after = [], []
    if fields.get("tokenizer.ggml.add_bos_token", adds_start):
        before = [_named(fields, "bos")]
    if fields.get("tokenizer.ggml.add_eos_token", False):
        after = [_named(fields, "eos")]
    if not before and not after:
        return
    pieces = [*(tokens[token_id] for token_id in before), "$A", *(tokens[token_id] for token_id in after)]
    library.post_processor = processors.TemplateProcessing(
        single=" ".join(pieces), special_tokens=[(tokens[token_id], token_id) for token_id in {*before, *after}]
    )


def _named(fields: GgufFields, name: str) -> int:
    return int(fields.required(f"tokenizer.ggml.{name}_token_id"))
