"""Classes from the results of an adapter's head: probabilities of a text, and entities of tokens."""

import math
from collections.abc import Sequence

from manylora.models.text.tokenizer import TokenSpan
from manylora.server.schemas.lorax.classify import Entity

OUTSIDE = "O"
"""The label of a token that belongs to no entity."""


def label_name(labels: Sequence[str], label: int) -> str:
    """Return the name of a label; without names `LABEL_0` and so on, as in transformers."""
    return labels[label] if labels else f"LABEL_{label}"


def probabilities(logits: Sequence[float], problem: str) -> list[float]:
    """Return the probability of each label, as the pipelines of transformers do.

    One logit, and logits of several labels at once, are probabilities by themselves (sigmoid); of a regression they are
    the result. Else they share one (softmax).
    """
    if problem == "regression":
        return list(logits)
    if problem == "multi_label_classification" or len(logits) == 1:
        return [1.0 / (1.0 + math.exp(-max(-700.0, logit))) for logit in logits]
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def entities_of(
    text: str, spans: Sequence[TokenSpan], best: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[Entity]:
    """Return the entities of a text. `best` has the label and the probability of each token.

    Tokens that the tokenizer adds by itself are left out. A token joins the entity before it if both have one class
    and its label does not begin with `B-`. As the strategy `simple` of transformers' pipeline for tokens.
    """
    groups: list[tuple[str, list[tuple[TokenSpan, float]]]] = []
    for span, (label, score) in zip(spans, best, strict=True):
        if span.start == span.stop:
            continue
        name = label_name(labels, int(label))
        kind = name[2:] if name[:2] in ("B-", "I-") else name
        if groups and groups[-1][0] == kind and not name.startswith("B-"):
            groups[-1][1].append((span, score))
        else:
            groups.append((kind, [(span, score)]))
    return [_entity(text, kind, tokens) for kind, tokens in groups if kind != OUTSIDE]


def _entity(text: str, kind: str, tokens: list[tuple[TokenSpan, float]]) -> Entity:
    start, end = tokens[0][0].start, tokens[-1][0].stop
    score = math.fsum(score for _, score in tokens) / len(tokens)
    return {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}
