import numpy as np

from hf_efficient.tasks.confusion import MOST, _figure


def texts(figure: object) -> dict[tuple[float, float], str]:
    """Number at each (row, column)."""
    axes = figure.axes[0]
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}


def test_rows_are_given_and_columns_predicted() -> None:
    figure = _figure(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), ["cat", "dog $x$", "eel"])
    assert texts(figure) == {(0, 0): "2", (0, 1): "1", (1, 1): "1"}
    shares = figure.axes[0].images[0].get_array()
    assert np.allclose(shares, [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 0]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "dog $x$", "eel"]


def test_of_many_classes_those_that_are_mistaken() -> None:
    names = [f"c{index}" for index in range(40)]
    truth, said = np.arange(40), np.arange(40)
    said[37], said[3] = 3, 37
    figure = _figure(truth, said, names)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(shown) == MOST
    assert {"c3", "c37"} <= set(shown)
    assert shown == sorted(shown, key=lambda name: int(name[1:]))
    assert "25 of 40" in figure.axes[0].get_title(loc="left")
