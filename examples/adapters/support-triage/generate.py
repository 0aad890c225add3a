"""Writes the training set of the `support-triage` adapter.

The same seed gives the same file. Tickets come from two sources: complete tickets written one by one (``tickets/``),
each used as it is and half of them a second time, and phrase templates (``templates/``). Short ones are put inside
other surroundings: greetings, stories, closers, and sentences about *another* topic (``background/``), so that the
label follows what the customer asks for and not the words that happen to occur.

    python generate.py --out build/train.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from noise import roughen
from phrases import FOLDER, LABELS, Phrases

SEED = 20
VARIANTS = 0.5
PER_CLASS = 60
HOLD_OUT_EVERY = 12
SHORT = 200
"""Characters up to which a written ticket is also put into other surroundings; a longer one brings its own."""


def ticket(phrases: Phrases, rng: random.Random, label: str, ask: str) -> str:
    """Put an ask into surroundings: any of opener, story, other-topic background, closer."""
    before: list[str] = []
    after: list[str] = []
    if rng.random() < 0.35:
        before.append(phrases.one_of(phrases.openers))
    if rng.random() < 0.30:
        before.append(phrases.one_of(phrases.stories))
    draw = rng.random()
    if draw < 0.42:
        topics = rng.sample([other for other in LABELS if other != label], 2)
        before.append(phrases.one_of(phrases.background[topics[0]]))
        if rng.random() < 0.15:
            before.append(phrases.one_of(phrases.background[topics[1]]))
        if rng.random() < 0.55:
            before.append(phrases.one_of(phrases.connectors))
    elif draw < 0.50:
        topic = rng.choice([other for other in LABELS if other != label])
        after.append(phrases.one_of(phrases.background[topic]))
    elif draw < 0.58:
        after.append(phrases.one_of(phrases.stories))
    if rng.random() < 0.30:
        after.append(phrases.one_of(phrases.closers))
    if before and before[-1].endswith((",", "but", "And now", "Therefore")) and ask[:2] not in ("I ", "I'"):
        ask = ask[:1].lower() + ask[1:]
    separator = rng.choice((" ", " ", " ", " ", "\n", "\n\n"))
    parts = [*before, ask, *after]
    parts = [_finish(part, rng) if index + 1 < len(parts) else part for index, part in enumerate(parts)]
    return separator.join(parts)


def _finish(part: str, rng: random.Random) -> str:
    """End a sentence that has none of the usual endings."""
    if part[-1].isalnum() and len(part) > 25 and not part.endswith(" but") and rng.random() < 0.85:
        return part + "."
    return part


def read_tickets() -> list[tuple[str, str]]:
    """All written tickets with their labels, file by file."""
    rows: list[tuple[str, str]] = []
    for path in sorted((FOLDER / "tickets").glob("*.jsonl")):
        found = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        rows.extend((row["ticket"], row["label"]) for row in found)
    return rows


def generate(
    seed: int = SEED, variants: float = VARIANTS, per_class: int = PER_CLASS, hold_out: bool = True
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training tickets and, with `hold_out`, the written ones kept back for validation."""
    rng = random.Random(seed)
    phrases = Phrases(rng)
    train: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    for number, (text, label) in enumerate(read_tickets()):
        if hold_out and number % HOLD_OUT_EVERY == 3:
            held.append((text, label))
            continue
        train.append((text, label))
        if rng.random() < variants:
            whole = ticket(phrases, rng, label, text) if len(text) <= SHORT else text
            train.append((roughen(whole, rng), label))
    for label in LABELS:
        for number in range(per_class):
            ask = phrases.pick(phrases.templates[label][number % len(phrases.templates[label])])
            if rng.random() < 0.75:
                ask = ticket(phrases, rng, label, ask)
            train.append((roughen(ask, rng), label))
    unique = list(dict.fromkeys(train))
    rng.shuffle(unique)
    return unique, held


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """One JSON object a line, with the ticket and its label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for text, label in rows:
            file.write(json.dumps({"ticket": text, "label": label}, ensure_ascii=False) + "\n")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "build" / "train.jsonl")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--variants", type=float, default=VARIANTS, help="share of written tickets used a second time")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="tickets from templates for each label")
    parser.add_argument("--all", action="store_true", help="use the twelfth kept back for validation too")
    args = parser.parse_args()
    train, held = generate(args.seed, args.variants, args.per_class, not args.all)
    write(args.out, train)
    if held:
        write(args.out.with_name("validation.jsonl"), held)
    counts = Counter(label for _, label in train)
    print(
        f"{len(train)} tickets in {args.out} ({len(held)} kept back): " + ", ".join(f"{k} {counts[k]}" for k in LABELS)
    )


if __name__ == "__main__":
    main()
