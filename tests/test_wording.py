"""Figures in words."""

import pytest

from hf_efficient.wording import details, file_size, is_share, number, point_change, ratio


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (3, "3"), (-0.5, "-0.500")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999 bytes"), (1500, "1.50 kB"), (2e6, "2.00 MB"), (3e9, "3.00 GB")])
def test_sizes(value: float, text: str) -> None:
    assert file_size(value) == text


def test_changes() -> None:
    assert ratio(2.0, 1.0, "smaller", "larger") == "2.0x smaller"
    assert ratio(1.0, 2.0, "smaller", "larger") == "2.0x larger"
    assert point_change(0.9, 0.91) == "+1.0 points"


def test_shares_are_told_by_name_and_value() -> None:
    assert is_share("eval_f1_macro", [0.5, 1.0])
    assert not is_share("f1", [88.0])
    assert not is_share("loss", [0.5])


def test_details_leave_out_the_heading() -> None:
    assert details({"name": "cut", "kept": [0, 2], "share": 0.5}) == "kept [0, 2], share 0.500"
    assert details({"name": "cut"}) == "no details"


def test_details_tell_nested_values_in_short() -> None:
    tried = [
        {"layers": {"encoder": [0, 1, 2, 3]}, "loss": 0.25, "trial": None},
        {"layers": {}, "loss": 1.0, "done": True},
    ]
    assert details({"widths": [64, 64, 64, 64], "map": [[0, 2], [1, 4]], "tried": tried}) == (
        "widths [4 times 64], map [[0, 2], [1, 4]], "
        "tried [(layers (encoder [0 to 3]), loss 0.250), (layers (), loss 1, done yes)]"
    )
