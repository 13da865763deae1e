import json
import logging
import os
import warnings
from pathlib import Path

import datasets
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from hf_efficient.data import DataSettings, check_columns, load, load_split, split_off
from hf_efficient.errors import ConfigError, DataError
from hf_efficient.settings import parse

ROWS = [{"text": f"text {index}", "label": "abc"[index % 3]} for index in range(60)]


class Labelled(DataSettings):
    def columns(self) -> list[str]:
        return ["text", "label"]

    def label_column(self) -> str:
        return "label"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict] = ROWS) -> str:
    frame, path = pd.DataFrame(rows), Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        case ".parquet":
            frame.to_parquet(path)
    return name


def read(content: str | bytes, name: str = "train.csv", **settings: str) -> DatasetDict:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(Labelled(train=name, **settings))


def error_of(content: str | bytes, name: str = "train.csv") -> str:
    with pytest.raises(DataError) as caught:
        read(content, name)
    assert name in str(caught.value)
    return str(caught.value)


def texts(dataset: Dataset) -> list[str]:
    return list(dataset["text"])


# Formats


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_each_format_gives_the_rows_as_written(suffix: str) -> None:
    validation = write(f"validation.{suffix}", ROWS[:5])
    data = load(Labelled(train=write(f"train.{suffix}"), validation=validation))
    assert data["train"].to_list() == ROWS
    assert data["validation"].to_list() == ROWS[:5]
    assert set(data) == {"train", "validation"}


def test_one_split_alone() -> None:
    """Whole: nothing is split off, and the other sources are not read."""
    settings = Labelled(train="none.csv", test=write("test.csv"))
    assert load_split(settings, "test").to_list() == ROWS
    with pytest.raises(DataError, match=r"none\.csv"):
        load_split(settings, "train")
    with pytest.raises(DataError, match=r"data\.test 't\.csv'.*'label'"):
        load_split(Labelled(train="none.csv", test=write("t.csv", [{"text": "a"}])), "test")


def test_csv_values_stay_text() -> None:
    content = 'text,label\nNA,None\n007,null\n"two\nlines, and a comma",1.0\n'
    data = read(content, validation=write("validation.csv"))
    expected = [("NA", "None"), ("007", "null"), ("two\nlines, and a comma", "1.0")]
    assert [tuple(row.values()) for row in data["train"]] == expected


def test_csv_with_byte_order_mark() -> None:
    assert read("\ufefftext,label\n" + "a,b\n" * 4)["train"].column_names == ["text", "label"]


def test_names_with_pattern_characters_and_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write("a[1]*.csv", ROWS[:30])
    write("a1b.csv", ROWS[30:])
    data = load(Labelled(train="~/a[1]*.csv"))
    assert sorted(texts(data["train"]) + texts(data["validation"])) == sorted(row["text"] for row in ROWS[:30])


def test_a_changed_file_is_read_again_even_with_the_same_time_and_size() -> None:
    name = write("train.csv", ROWS)
    before = os.stat(name)
    first = load(Labelled(train=name))
    write(name, [{**row, "text": row["text"].replace("text", "TEXT")} for row in ROWS])
    os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(name).st_size, os.stat(name).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert texts(load(Labelled(train=name))["train"]) == [text.upper() for text in texts(first["train"])]
    assert texts(first["train"])[0].startswith("text")


@pytest.mark.parametrize("hidden", [True, False])
def test_reading_shows_nothing_and_leaves_the_settings(
    hidden: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (datasets.disable_progress_bars if hidden else datasets.enable_progress_bars)()
    verbosity = datasets.logging.get_verbosity()
    logging.getLogger("datasets").addHandler(caplog.handler)
    try:
        read("text,label\n" + "a,b\n" * 4)
        error_of("text,label\na,b\nc,d,e\n")
        assert datasets.are_progress_bars_disabled() == hidden
    finally:
        logging.getLogger("datasets").removeHandler(caplog.handler)
        datasets.enable_progress_bars()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert datasets.logging.get_verbosity() == verbosity


# Bad input: one message each


def test_missing_file_suggests_the_nearest_name() -> None:
    write("folder/training.csv")
    with pytest.raises(DataError, match=r"no file folder/trainin.csv; did you mean folder/training.csv\?"):
        load(Labelled(train="folder/trainin.csv"))
    with pytest.raises(DataError, match=r"no file nowhere/train.csv: there is no folder nowhere here"):
        load(Labelled(train="nowhere/train.csv"))
    with pytest.raises(DataError, match="no file"):
        load(Labelled(train="x" * 5000 + ".csv"))


def test_folder_and_suffix() -> None:
    write("folder/train.csv")
    Path("train.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"folder is a folder without images"):
        load(Labelled(train="folder"))
    with pytest.raises(DataError, match=r"train.xlsx: unknown suffix '.xlsx'. Allowed: .csv, .tsv, .json"):
        load(Labelled(train="train.xlsx"))


def test_ragged_csv_names_the_line() -> None:
    assert "Expected 2 fields in line 3, saw 3" in error_of("text,label\na,b\nc,d,e\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "more fields than the header" in error_of("text,label\na,b,c\nd,e,f\n")
    assert "EOF inside string" in error_of('text,label\na,b\n"c,d\n')
    assert "column 'label' is empty in 1 of 2 rows (row 2)" in error_of("text,label\na,b\nc\n")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_binary_garbage(suffix: str) -> None:
    assert f"cannot read train.{suffix}" in error_of(bytes(range(256)) * 20, f"train.{suffix}")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_empty_file(suffix: str) -> None:
    assert "is empty" in error_of("", f"train.{suffix}")


def test_no_rows() -> None:
    assert "no rows" in error_of("text,label\n")
    assert "no rows" in error_of("[]", "train.json")
    assert "cannot read" in error_of("\n\n", "train.csv")
    assert "no rows" in error_of("\n \n", "train.jsonl")
    pd.DataFrame({"text": [], "label": []}).to_parquet("empty.parquet")
    with pytest.raises(DataError, match=r"empty.parquet is empty"):
        load(Labelled(train="empty.parquet"))


def test_wrong_encoding() -> None:
    assert "line 2 is not UTF-8" in error_of("text,label\ncafé,b\n".encode("latin-1"))
    assert "line 1 is not UTF-8" in error_of('{"text": "café", "label": "b"}'.encode("latin-1"), "train.jsonl")


def test_broken_json_names_the_line() -> None:
    rows = "\n".join(json.dumps(row) for row in ROWS[:2])
    assert "line 3 is not valid JSON" in error_of(f"{rows}\n{{broken\n", "train.jsonl")
    assert "cannot read" in error_of('[{"text": "a"', "train.json")


@pytest.mark.parametrize("content", ["null", " \n  null", '{"text": "a", "label": "b"}\n' + "null\n" * 200_000])
def test_null_for_a_json_row_does_not_crash_the_process(content: str) -> None:
    assert "is null. Write one JSON object per line" in error_of(content, "train.jsonl")


def test_null_in_an_indented_json_row_is_a_value() -> None:
    rows = [{**row, "tags": [None]} for row in ROWS]
    assert read(json.dumps(rows, indent=1), "train.json")["train"].num_rows == 54


def test_archive_under_another_name() -> None:
    assert "cannot read" in error_of(b"PK\x03\x04" + bytes(100))


def test_cut_parquet() -> None:
    write("train.parquet")
    assert "cannot read" in error_of(Path("train.parquet").read_bytes()[:-40], "train.parquet")


def test_missing_column_names_those_there_are() -> None:
    message = error_of("txt,label\na,b\n")
    assert "unknown column 'text'; did you mean 'txt'? Allowed: label, txt" in message


def test_blank_values_are_counted_by_row_of_the_file() -> None:
    rows = [{**row, "text": " " if index % 8 == 0 else row["text"]} for index, row in enumerate(ROWS)]
    write("train.csv", rows)
    with pytest.raises(
        DataError, match=r"data.train 'train.csv': column 'text' is empty in 8 of 60 rows \(row 1, 9, 17, 25, 33, ...\)"
    ):
        load(Labelled(train="train.csv"))
    write("test.jsonl", [*ROWS[:3], {"text": "a", "label": None}])
    with pytest.raises(DataError, match=r"data.test 'test.jsonl': column 'label' is empty in 1 of 4 rows \(row 4\)"):
        load(Labelled(train=write("good.csv"), test="test.jsonl"))


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="here has no rows"):
        check_columns(Dataset.from_dict({"text": []}), ["text"], "here")


def test_settings_are_typed() -> None:
    values = {"train": "a.csv", "validation_fraction": "0.2"}
    assert parse(DataSettings, values, "data").validation_fraction == 0.2
    with pytest.raises(ConfigError, match=r"data.validation_fraction.*0.5"):
        parse(DataSettings, {**values, "validation_fraction": 0.6}, "data")
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        parse(DataSettings, {**values, "trian": "b.csv"}, "data")
    with pytest.raises(ConfigError, match=r"data.train is missing"):
        parse(DataSettings, {}, "data")


# Splits


def test_validation_is_split_off_stratified_and_by_seed() -> None:
    name = write("train.csv")
    data = load(Labelled(train=name, validation_fraction=0.2), seed=1)
    assert sorted(data["validation"]["label"]) == [*"aaaabbbbcccc"]
    assert set(texts(data["train"])).isdisjoint(texts(data["validation"]))
    assert sorted(texts(data["train"]) + texts(data["validation"])) == sorted(row["text"] for row in ROWS)
    again = load(Labelled(train=name, validation_fraction=0.2), seed=1)
    other = load(Labelled(train=name, validation_fraction=0.2), seed=2)
    assert texts(again["validation"]) == texts(data["validation"])
    assert texts(other["validation"]) != texts(data["validation"])


def test_where_strata_do_not_fit_no_class_loses_its_last_row() -> None:
    rows = Dataset.from_dict({"text": [*"abcdefghij"], "label": [*"aabbccddez"]})
    for seed in range(20):
        train, validation = split_off(rows, 0.3, seed, "label")
        assert len(validation) == 3
        assert set(train["label"]) == set("abcdez")
        assert set(texts(train)).isdisjoint(texts(validation))


def test_split_off_without_labels() -> None:
    train, validation = split_off(Dataset.from_dict({"text": [*"abcd"]}), 0.1, 0)
    assert (len(train), len(validation)) == (3, 1)


def test_too_few_rows_to_split() -> None:
    with pytest.raises(DataError, match=r"too few rows \(2, in 2 classes\).*give data.validation"):
        load(Labelled(train=write("train.csv", ROWS[:2])))


def test_a_file_does_not_serve_as_its_own_test_set() -> None:
    name = write("train.csv")
    with pytest.raises(DataError, match=r"data.test: 'train.csv' has no split 'test', only train; give another"):
        load(Labelled(train=name, test=name))


# Samples


def test_sample_gives_all_splits_unless_others_are_named() -> None:
    for split in ("train", "validation", "test"):
        write(f"samples/greetings/{split}.csv", [{"text": split, "label": "a"}] * 4)
    root = Path("samples")
    data = load(Labelled(train="sample:greetings"), sample_root=root)
    assert {name: texts(split)[0] for name, split in data.items()} == {name: name for name in data}
    mine = write("mine.csv")
    named = load(Labelled(train="sample:greetings", test=mine), sample_root=root)
    assert texts(named["test"]) == [row["text"] for row in ROWS]
    own = load(Labelled(train=mine), sample_root=root)
    assert "test" not in own
    mixed = load(Labelled(train=mine, test="sample:greetings"), sample_root=root)
    assert texts(mixed["test"]) == ["test"] * 4


def test_unknown_sample() -> None:
    with pytest.raises(DataError, match="unknown sample 'costumer_service'; did you mean 'customer_service'"):
        load(Labelled(train="sample:costumer_service"))


def test_bundled_sample() -> None:
    data = load(Labelled(train="sample:customer_service"))
    assert list(data) == ["train", "validation", "test"]
    assert set(data["test"]["label"]) == set(data["train"]["label"])
    assert not set(texts(data["train"])) & set(texts(data["validation"]) + texts(data["test"]))


# Hub


@pytest.mark.parametrize("source", ["json", "customer_service", "https://example.org/a.csv", "", "me/data:", "my data"])
def test_what_is_no_source(source: str) -> None:
    with pytest.raises(DataError, match=f"data.train: '{source}' is neither .*user/name.*sample:customer_service"):
        load(Labelled(train=source))


def test_hub_data_set_that_cannot_be_reached() -> None:
    for source in ("nobody/no-such-data", "nobody/no-such-data:config"):
        with pytest.raises(DataError, match=f"cannot load the Hub data set '{source}'.*Check its name"):
            load(Labelled(train=source))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The Hub holds one data set in any name; the calls are listed."""
    names = ClassLabel(names=["a", "b", "c"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    split = Dataset.from_list([{**row, "label": names.str2int(row["label"])} for row in ROWS], features=features)
    withheld = split.map(lambda row: {"label": -1})
    calls: list[tuple] = []

    def load_dataset(*given: str | None) -> DatasetDict:
        calls.append(given)
        return DatasetDict({"train": split, "test": withheld, "unsupervised": split})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_data_set(hub: list[tuple]) -> None:
    data = load(Labelled(train="me/data:german"))
    assert hub == [("me/data", "german")]
    assert set(data) == {"train", "validation"}, "a withheld test split (labels -1) is no test split"
    assert len(data["train"]) == 54
    with pytest.raises(DataError, match=r"data.validation: 'me/data' has no split 'validation', only train, test"):
        load(Labelled(train="me/data", validation="me/data"))
