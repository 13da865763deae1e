import numpy as np
from matplotlib.colors import to_hex

from hf_efficient.tasks.apps.monitor_store import Alarm
from hf_efficient.tasks.apps.timeline import FEWEST, MOST_STEPS, MOST_TOPICS, order, png, rolling, rows, timeline

LABELS = ["neutral", "negative", "positive"]


def test_hours_become_equal_steps() -> None:
    counts = [(10, "a", "negative", 3), (10, "b", "neutral", 9), (12, "a", "positive", 2), (12, "a", "odd", 5)]
    found = rows(counts, LABELS)
    assert list(found) == ["b", "a"]
    starts, items = found["a"]
    assert starts.tolist() == [10, 11, 12]
    assert items.tolist() == [[0, 3, 0], [0, 0, 0], [0, 0, 2]]
    year = [(hour, "a", "neutral", 1) for hour in range(24 * 365)]
    starts, items = rows(year, LABELS)["a"]
    assert len(starts) <= MOST_STEPS
    assert items.sum() == 24 * 365
    assert len(set(np.diff(starts))) == 1
    assert rows([], LABELS) == {}


def test_shares_are_of_enough_items() -> None:
    many = np.full((8, 2), FEWEST)
    assert rolling(many).tolist() == many.tolist()
    few = np.full((16, 2), FEWEST // 4)
    assert rolling(few)[:, 0].tolist() == [10, *[20] * 15]
    assert rolling(np.array([[1, 0]])).tolist() == [[1, 0]]
    assert rolling(np.eye(8, dtype=int))[-1].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]  # of a quarter of all at most


def test_negatives_are_at_the_bottom_and_alarms_lines() -> None:
    assert order(LABELS, "negative") == ["negative", "neutral", "positive"]
    counts = [(hour, topic, label, 50) for hour in range(6) for topic in ("a", "b $x$") for label in LABELS]
    alarms = [Alarm(1, "a", 7200.0, 3600.0, 9, 0.5, 0.2), Alarm(2, "", 9000.0, 3600.0, 9, 0.5, 0.2)]
    figure = timeline(counts, alarms, LABELS, "negative")
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a  (900)", "b $x$  (900)"]
    assert (len(first.lines), len(second.lines)) == (2, 1)  # that of all topics is in each
    assert to_hex(first.collections[0].get_facecolor()[0]).upper() == "#D55E00"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["negative", "neutral", "positive", "alarm"]
    assert png(figure).startswith(b"\x89PNG")


def test_pictures_of_little() -> None:
    for counts in ([], [(5, "a", "up", 1)], [(5, f"topic {n} " + "x" * 50, "up", n + 1) for n in range(20)]):
        figure = timeline(counts, [], ["up", "down"], "down")
        assert len(figure.axes) == min(len(counts), MOST_TOPICS)
        assert png(figure).startswith(b"\x89PNG")
