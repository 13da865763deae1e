"""Folders in the format of MIND."""

from pathlib import Path

import pytest

from hf_efficient.data import DataSettings, load
from hf_efficient.errors import DataError
from hf_efficient.reading import read_folder

NEWS = [
    'N1\tsports\tsoccer\tA "late" goal\t\thttps://a\t[]\t[]',
    "N2\tfood\trecipes\tSoup of the day\tHot.\thttps://b\t[]\t[]",
    "N3\tfood\tnews\tBread is dear\u2028now\t\thttps://c\t[]\t[]",
]
BEHAVIORS = ["1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N1-0", "2\tU2\t11/12/2019 6:00:00 PM\t\tN2-0"]


def folder(path: Path, behaviors: list[str] = BEHAVIORS, news: list[str] = NEWS) -> Path:
    path.mkdir()
    for name, lines in (("behaviors.tsv", behaviors), ("news.tsv", news)):
        (path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_rows_are_impressions(tmp_path: Path) -> None:
    first, second = read_folder(folder(tmp_path / "mind")).to_list()
    assert first == {
        "impression": "1",
        "user": "U1",
        "time": "11/11/2019 9:05:58 AM",
        "history": ['A "late" goal', "Soup of the day"],
        "items": ["N3", "N1"],
        "candidates": ["Bread is dear\u2028now", 'A "late" goal'],
        "categories": ["food", "sports"],
        "subcategories": ["news", "soccer"],
        "clicks": [1, 0],
    }
    assert (second["history"], second["clicks"]) == ([], [0])


def test_it_is_a_source(tmp_path: Path) -> None:
    train, test = (str(folder(tmp_path / name, BEHAVIORS * 5)) for name in ("train", "dev"))
    data = load(DataSettings(train=train, test=test))
    assert {name: len(split) for name, split in data.items()} == {"train": 9, "validation": 1, "test": 10}


BAD = {
    "too few fields": (["1\tU1\ttime\tN1"], NEWS, r"behaviors.tsv: line 1 has 4 fields.* needs 5: impression, user"),
    "no such article": (
        [*BEHAVIORS, "3\tU3\ttime\tN9\tN1-1"],
        NEWS,
        r"behaviors.tsv: line 3: news.tsv has no article 'N9'; add it",
    ),
    "no clicks": (["1\tU1\ttime\tN1\tN1 N2"], NEWS, r"line 1: the candidate 'N1' does not end in -1 \(clicked\) or -0"),
    "no candidates": (["1\tU1\ttime\tN1\t"], NEWS, r"line 1: no candidates; delete the line"),
    "no title": (BEHAVIORS, [NEWS[0], "N2\tfood\trecipes\t "], r"news.tsv: line 2: the title of 'N2' is empty"),
    "nothing": ([], NEWS, r"behaviors.tsv is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_the_line(case: str, tmp_path: Path) -> None:
    behaviors, news, message = BAD[case]
    with pytest.raises(DataError, match=message):
        read_folder(folder(tmp_path / "mind", behaviors, news))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    path = folder(tmp_path / "mind")
    (path / "news.tsv").write_bytes(NEWS[0].encode() + b"\nN2\tfood\tr\t\xe9\n")
    with pytest.raises(DataError, match=r"news.tsv: line 2 is not UTF-8"):
        read_folder(path)
    (path / "news.tsv").unlink()
    with pytest.raises(DataError, match=r"no file .*news.tsv; a folder in the format of MIND has behaviors.tsv and"):
        read_folder(path)
