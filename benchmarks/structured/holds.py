"""The longest time that work for a grammar keeps the interpreter from every other thread, such as that of the steps.

    python -m benchmarks.structured.holds [--rounds 7] [--json FILE]

A thread notes the time each millisecond; the figure of a kind of work is the longest gap meanwhile, less the
millisecond. `spelled`: the first grammar of an adapter with 64 tokens of its own, over the base's vocabulary. `opened`:
the same over a vocabulary with these tokens, as a grammar needs that names one of them. `plain` and `tried`: first
schemas that need no trial and one, over the base's vocabulary. `trial`: the start of the process of trials. `base`: the
vocabulary of the base, which a server opens before it serves.
"""

import argparse
import gc
import json
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from manylora.bench.machine import describe
from manylora.bench.servers import default_base
from manylora.bench.statistics import median_with_interval
from manylora.clock import SystemClock
from manylora.engine.grammars.compiler import GrammarCompiler, GrammarKey
from manylora.engine.grammars.compiling import CompiledGrammar, Vocabulary, open_vocabulary
from manylora.engine.grammars.trials import ProcessTrials, VocabularyText
from manylora.engine.grammars.vocabularies import Vocabularies
from manylora.ids import Flow
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.models.spec import read_spec
from manylora.models.text.adapter_text import AddedToken
from manylora.models.text.grammar import json_grammar, lark_grammar
from manylora.models.text.tokenizer import Tokenizer

TICK_S = 1e-3
FLOW = Flow("a")
ADDED = 64


def held_ms(clock: SystemClock, work: Callable[[], object]) -> float:
    """The longest time between two looks of another thread at the clock, in milliseconds, less the pause between."""
    gaps: list[float] = []
    is_over = threading.Event()

    def tick() -> None:
        last_s = clock.monotonic_s()
        while not is_over.wait(TICK_S):
            now_s = clock.monotonic_s()
            gaps.append(now_s - last_s - TICK_S)
            last_s = now_s
        gaps.append(clock.monotonic_s() - last_s - TICK_S)

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    is_over.set()
    thread.join()
    return 1e3 * max(gaps)


class Bench:
    """A compiler over a base, as an engine has it."""

    def __init__(self, base: Path) -> None:
        self.clock, self.tokenizer, self.vocab = SystemClock(), Tokenizer(base), read_spec(base).vocab
        self.vocabularies = Vocabularies(self._open, self._texts)
        self.base_text = cache(partial(self._text, ()))
        self.trials = ProcessTrials(self.base_text)
        self.compiler = GrammarCompiler(self.vocabularies, self.clock, self.trials)
        self.number = 0

    def added(self) -> tuple[AddedToken, ...]:
        """Tokens of an adapter never seen before."""
        self.number += 1
        first = max(self.vocab, self.tokenizer.vocab_size)
        return tuple(AddedToken(id=first + index, content=f"word{self.number}_{index}") for index in range(ADDED))

    def schema(self, *, is_plain: bool = True) -> GrammarKey:
        """A schema never seen before."""
        self.number += 1
        text = {"type": "string", **({} if is_plain else {"pattern": f"^a{self.number}"})}
        return GrammarKey(json_grammar({"type": "object", "properties": {f"p{self.number}": text}}), ())

    def named(self, added: tuple[AddedToken, ...]) -> GrammarKey:
        return GrammarKey(lark_grammar(f'start: "a" <[{added[0].id}]>'), added)

    def begin(self, key: GrammarKey, added: tuple[AddedToken, ...] = ()) -> None:
        """Wait for a compiled grammar, and make the matcher of one sequence."""
        while (found := self.compiler.want(key, FLOW)) is None:
            threading.Event().wait(TICK_S)
        assert isinstance(found, CompiledGrammar), found
        self.compiler.matcher(key, Flow("a"), self.tokenizer.eos_ids, added)

    def _open(self, added: tuple[AddedToken, ...]) -> Vocabulary:
        found = self._text(added)
        return open_vocabulary(found.text, size=found.size, ends=found.ends)

    def _texts(self, added: tuple[AddedToken, ...]) -> dict[int, bytes]:
        own = self.tokenizer.with_added(added)
        return {token.id: own.token_bytes(token.id) for token in added}

    def _text(self, added: tuple[AddedToken, ...]) -> VocabularyText:
        size = max(self.vocab, self.tokenizer.vocab_size) + MAX_ADDED_TOKENS
        return VocabularyText.of(self.tokenizer.to_json(added), size, tuple(sorted(self.tokenizer.eos_ids)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, bench = describe(), Bench(default_base())
    held: dict[str, list[float]] = {}

    def measure(kind: str, work: Callable[[], object]) -> None:
        gc.collect()
        held.setdefault(kind, []).append(held_ms(bench.clock, work))

    measure("base", lambda: (bench.vocabularies.of(()), bench.base_text()))
    measure("trial", bench.trials.prepare)
    for _ in range(options.rounds):
        added = bench.added()
        measure("spelled", lambda: bench.begin(bench.schema(), added))  # noqa: B023  called at once
        named = bench.named(added)
        measure("opened", lambda: bench.begin(named))  # noqa: B023  called at once
        measure("plain", lambda: bench.begin(bench.schema()))
        measure("tried", lambda: bench.begin(bench.schema(is_plain=False)))
    bench.compiler.close()
    result = {kind: median_with_interval(values) for kind, values in held.items()}
    longest = {kind: round(max(values), 1) for kind, values in held.items()}
    for kind, found in result.items():
        print(f"{kind:<8} {found} ms, at most {longest[kind]}")
    if options.json:
        record = {**facts, "milliseconds": result, "longest_ms": longest}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
