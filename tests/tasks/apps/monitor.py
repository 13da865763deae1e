"""A monitor whose model goes by words."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_efficient.tasks.apps.finance_monitor import FinanceMonitor, MonitorSettings

LABELS = ["negative", "neutral", "positive"]


class Words:
    """A `Predictor` that knows the words bad and good."""

    labels = LABELS
    task = SimpleNamespace(name="text-classification", label_names=LABELS)
    runtime = SimpleNamespace(name="words")

    def answers(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        found = ("negative" if "bad" in text else "positive" if "good" in text else "neutral" for text in texts)
        return [{"label": label, "score": 0.9} for label in found]


def monitor(folder: Path, **settings: Any) -> FinanceMonitor:
    """Started; its database is in ``folder``."""
    app = FinanceMonitor(MonitorSettings(**settings), Words(), folder)  # type: ignore[arg-type]
    app.start()
    return app


def line(text: str, when: float = 0.0, **more: Any) -> str:
    return json.dumps({"text": text, "time": when, **more}) + "\n"


def headlines(count: int, bad_after: int | None = None) -> list[str]:
    """Lines of which one in four is negative; from ``bad_after`` on, three in four. Two topics take turns."""
    lines = []
    for number in range(count):
        surges = bad_after is not None and number >= bad_after
        is_bad = (number * 7919 % 100) < (75 if surges else 25)
        kind = "bad" if is_bad else "good" if number % 2 else "flat"
        lines.append(line(f"{kind} news {number}", 60.0 * number, topic=("east", "west")[number % 2]))
    return lines
