"""Every two optimizations train together or refuse to; `python -m tests.test_pairs` writes down which do.

What they reload to is what was trained, with a plain `from_pretrained`; one that has no effect beside another warns,
which is an error here.
"""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from hf_efficient import ConflictError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.plan import OPTIMIZATIONS, Plan, build_optimizations
from tests.test_contract import MODELS, ROWS
from tests.test_parity import build

TABLE = Path(__file__).parents[1] / "docs" / "optimizations" / "README.md"
PAIRS = list(itertools.combinations(OPTIMIZATIONS, 2))


def refused(*pair: str) -> bool:
    """Whether they are declared not to go together, with the settings of the contract's rows."""
    built = build_optimizations({name: ROWS[name].settings for name in pair})
    return any(one.conflicts.intersection(pair) for one in built)


def table() -> str:
    numbers = range(1, len(OPTIMIZATIONS) + 1)
    lines = [
        "# Optimizations",
        "",
        "One card each. ✓: the two were trained together, in one phase, and the model that came out loads with plain",
        "`from_pretrained` as it was trained; ✗: refused with the reason, as cards say. Written by",
        "`python -m tests.test_pairs`; `tests/test_pairs.py` trains every pair.",
        "",
        f"| | | {' | '.join(map(str, numbers))} |",
        f"|---|---|{'---|' * len(OPTIMIZATIONS)}",
    ]
    for number, name in zip(numbers, OPTIMIZATIONS, strict=True):
        cells = ["" if other == name else "✗" if refused(name, other) else "✓" for other in OPTIMIZATIONS]
        lines.append(f"| {number} | [{name}]({name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_table_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run: python -m tests.test_pairs"


def kind_for(pair: tuple[str, str]) -> str | None:
    """A kind of model on which both have an effect."""
    idle = {kind for name in pair for kind in ROWS[name].idle_on}
    return next((kind for kind in MODELS if kind not in idle), None)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not refused(*pair)], ids="-".join)
def test_together(pair: tuple[str, str], tmp_path: Path) -> None:
    arguments = {key: value for name in pair for key, value in ROWS[name].arguments.items()}
    if "dense_epochs" in arguments:  # long enough for adapters, too
        arguments["dense_epochs"] = 12
    optimizations = {name: ROWS[name].settings for name in pair}
    options = {"optimizations": optimizations, "measure_seconds": 0, "save_strategy": "no", **arguments}
    length = {"per_device_train_batch_size": 16, "max_steps": 4}  # a whole pass of data_pruning, and some of the next
    kind = kind_for(pair)
    made = build(EfficientTrainer, EfficientTrainingArguments, tmp_path, kind or "text", **{**length, **options})
    set_seed(0)
    with contextlib.nullcontext() if kind else pytest.warns(NoEffectWarning, match="|".join(pair)):
        made.train()
    assert {one.name for one in made.optimizations} == set(pair)
    for one in made.optimizations:
        json.dumps(one.describe())
    loaded = type(made.model).from_pretrained(made.finished).eval()
    batch = made.collate(made.examples(made.eval_dataset, 4))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, made.model.eval()(**batch).logits)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if refused(*pair)], ids="-".join)
def test_not_together(pair: tuple[str, str]) -> None:
    with pytest.raises(ConflictError, match="cannot run together; drop one of them"):
        Plan(build_optimizations({name: ROWS[name].settings for name in pair}))


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
