"""Column files and folders; the other formats are tested through `load` (test_data.py)."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel
from PIL import Image

from hf_efficient.errors import DataError
from hf_efficient.reading import read_file, read_folder

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
\t
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
    return folder


def test_columns_of_conll_2003(tmp_path: Path) -> None:
    assert read_file(write(tmp_path / "train.conll", CONLL)).to_list() == [
        {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
        {"tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]},
    ]


def test_columns_of_chinese_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "train.conll", "北\tB-LOC\n京\tI-LOC\n。\tO\n")
    assert read_file(path)[0] == {"tokens": ["北", "京", "。"], "ner_tags": ["B-LOC", "I-LOC", "O"]}


def test_bad_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 has a word and no tag \('rejects'\). Write a word"):
        read_file(write(tmp_path / "train.conll", "EU B-ORG\nrejects\n"))
    with pytest.raises(DataError, match="is empty"):
        read_file(write(tmp_path / "train.conll", "\n-DOCSTART- O\n\n"))
    (tmp_path / "train.conll").write_bytes("é B-ORG\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 1 is not UTF-8"):
        read_file(tmp_path / "train.conll")


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    """Also where a class has the name of a split, and names hold what patterns are made of."""
    folder = photos(tmp_path / "pho[t]os", "cat/1.png", "cat/2.jpg", "test/1.png")
    found = read_folder(folder).cast_column("image", datasets.Image(decode=False))
    assert found.features["label"] == ClassLabel(names=["cat", "test"])
    assert sorted(Path(row["image"]["path"]).name for row in found) == ["1.png", "1.png", "2.jpg"]
    assert sorted(found["label"]) == [0, 0, 1]


def test_a_folder_with_a_metadata_file(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "1.png", "2.png")
    write(folder / "metadata.csv", "file_name,label\n1.png,cat\n2.png,dog\n")
    assert read_folder(folder)["label"] == ["cat", "dog"]
    write(folder / "metadata.csv", "name,label\n1.png,cat\n")
    with pytest.raises(DataError, match=r"cannot read the folder .*; check its metadata file"):
        read_folder(folder)


def test_a_folder_without_images(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\n")
    with pytest.raises(DataError, match=r"is a folder without images or recordings; give one .*\.parquet"):
        read_folder(tmp_path)
