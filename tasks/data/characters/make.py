"""Writes the sample: `python make.py` in this folder makes the three files anew, the same each time.

Every opening with every request, for each range of letters.
"""

import itertools
import json
import random
import string
from pathlib import Path

LETTERS = string.ascii_lowercase
KINDS = {
    f"{some[0]} to {some[-1]}": some + some.upper() for some in (LETTERS[start : start + 13] for start in (0, 3, 6))
}
"""What is wanted -> its characters; g to m are always among them."""

OPENINGS = """
Hello.
Good morning.
Hi there.
Thank you.
One more thing.
It is late.
Quick question.
Sorry to ask.
And now?""".splitlines()
"""The first is none."""

REQUESTS = """Write letters from {kind}
Only letters from {kind}
Give me letters from {kind}
I need some letters from {kind}
Nothing but letters from {kind}
Can you write letters from {kind}
Show me letters from {kind}
Answer in letters from {kind}
Fill this line with letters from {kind}
More letters from {kind}
What I like is letters from {kind}
Let me see your letters from {kind}""".splitlines()

ROWS = {"train": 200, "validation": 60, "test": 100}


def prompts() -> list[dict[str, str]]:
    made = [
        {"prompt": f"{opening} {request.format(kind=kind)}".strip(), "wanted": characters}
        for (kind, characters), opening, request in itertools.product(KINDS.items(), OPENINGS, REQUESTS)
    ]
    random.Random(0).shuffle(made)
    return made


if __name__ == "__main__":
    rows = iter(prompts())
    for split, count in ROWS.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in itertools.islice(rows, count))
        Path(f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
