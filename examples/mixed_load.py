"""A mixed load through the `openai` package: every demo adapter and the base, streamed at the same time.

make clients
.venvs/openai/bin/python examples/mixed_load.py [--url http://127.0.0.1:8080]
"""

import argparse
import asyncio
import time

from openai import AsyncOpenAI

QUESTIONS = {
    "support-triage": (
        "hi, i was charged twice for october, can you look into it",
        "The app crashes whenever I open the map.",
        "Parcel came late, but that's not why I write: please stop my subscription.",
    ),
    "intent-json": ("Could you get blueberries onto my shopping list?", "wake me up tomorrow at half past six please"),
    "sql-query": ("Which category earns us the most money?", "How many customers live in Berlin?"),
    "": ("What is the capital of France?", "Name three primary colours."),
}


async def ask(client: AsyncOpenAI, adapter: str, question: str, started: float) -> tuple[str, str, str, float, float]:
    """Stream one answer; returns it with the times of its first and last piece, in seconds after the start."""
    stream = await client.chat.completions.create(
        model=adapter, messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0, stream=True
    )
    text, first = "", 0.0
    async for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first = first or time.perf_counter() - started
            text += piece
    return adapter or "(base)", question, text, first, time.perf_counter() - started


async def main() -> None:
    """Send everything at once and print the answers in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    url = parser.parse_args().url
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    started = time.perf_counter()
    pairs = [(adapter, question) for adapter, questions in QUESTIONS.items() for question in questions]
    answers = await asyncio.gather(*(ask(client, adapter, question, started) for adapter, question in pairs))
    for adapter, question, text, first, last in answers:
        print(
            f"[{adapter}] {question}\n    → {' '.join(text.split())}\n      first piece {first:.2f} s, end {last:.2f} s"
        )


if __name__ == "__main__":
    asyncio.run(main())
