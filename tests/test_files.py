"""Atomic writes: all or nothing, nothing left behind, and errors that say what to do."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient import files
from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, atomic_path, remove_leftovers, shared_temporary, write_json, write_text


def content(folder: Path) -> dict[str, str]:
    """Every file under ``folder``, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail_with(number: int) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_writes_text_and_json_and_makes_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "text.txt", "naïve\n数据")
    write_json(tmp_path / "a" / "value.json", {"größe": [1, 2.5, None]})
    assert (tmp_path / "a" / "b" / "text.txt").read_bytes() == "naïve\n数据".encode()
    assert json.loads((tmp_path / "a" / "value.json").read_text(encoding="utf-8")) == {"größe": [1, 2.5, None]}
    assert set(content(tmp_path)) == {"a/b/text.txt", "a/value.json"}


def test_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_text(target, "old")
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent  # a rename across file systems is not atomic
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert content(tmp_path) == {"target": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_block_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_halfway(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    write_text(tmp_path / "target", "old")
    write_text(tmp_path / "folder" / "file", "old")
    with pytest.raises(error), atomic_path(tmp_path / "target") as temporary:
        fail_halfway(temporary)
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as temporary:
        fail_halfway(temporary / "file")
    assert content(tmp_path) == {"target": "old", "folder/file": "old"}
    assert sorted(os.listdir(tmp_path)) == ["folder", "target"]


def test_value_that_json_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"tensor": torch.ones(1)})
    assert content(tmp_path) == {"value.json": "1\n"}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "writable"), (errno.EROFS, "writable"), (errno.EIO, "disk")],
)
@pytest.mark.parametrize("failing", ["write", "sync"])
def test_system_errors_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, failing: str
) -> None:
    target = tmp_path / "target"
    write_text(target, "old")
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "write_text") if failing == "write" else (os, "fsync")), fail_with(number))
        with pytest.raises(ConfigError, match=remedy) as caught:
            write_text(target, "new")
    assert f"cannot write {target}: {os.strerror(number)}" in str(caught.value)
    assert content(tmp_path) == {"target": "old"}


def test_full_disk_is_told_for_writers_that_raise_their_own_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="free some space"), atomic_folder(tmp_path / "model"):
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")  # as safetensors
    with pytest.raises(RuntimeError, match="unexpected pos"), atomic_path(tmp_path / "state.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")  # as torch.save, while there is space
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(ConfigError, match="free some space"), atomic_path(tmp_path / "state.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")
    assert content(tmp_path) == {}


def test_errors_about_other_files_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "target"):
        (tmp_path / "no such file").read_text()
    with pytest.raises(PermissionError, match="elsewhere"), atomic_path(tmp_path / "target"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/data.csv")
    assert content(tmp_path) == {}


def test_something_in_the_way(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="in the way"):
        write_text(tmp_path / "file" / "below", "")
    with pytest.raises(ConfigError, match="in the way"):
        write_text(tmp_path / "folder", "")
    with pytest.raises(ConfigError, match="it is a file"), atomic_folder(tmp_path / "file"):
        pytest.fail("must be refused before anything is written")
    with pytest.raises(ConfigError, match="shorter name"):
        write_text(tmp_path / ("x" * 300), "")
    assert content(tmp_path) == {"file": ""}


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for version in ("1", "2"):
        with atomic_folder(target) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / f"only_in_{version}").write_text(version)
            assert not (target / "deep" / f"only_in_{version}").exists()
    assert content(tmp_path) == {"model/deep/only_in_2": "2"}


def test_old_folder_comes_back_when_it_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "model", os.replace
    write_text(target / "file", "old")

    def fail_once_moved_aside(source: Any, to: Any) -> None:
        if Path(to) == target and Path(source).suffix == ".tmp":
            fail_with(errno.EACCES)()
        rename(source, to)

    monkeypatch.setattr(os, "replace", fail_once_moved_aside)
    with pytest.raises(ConfigError, match="writable"), atomic_folder(target) as temporary:
        (temporary / "file").write_text("new")
    assert content(tmp_path) == {"model/file": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_several_processes_know_the_temporary_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    shared = shared_temporary(target)
    write_text(shared / "of a process that died", "half")
    with atomic_folder(target, shared=True) as temporary:
        assert temporary == shared
        (shared / "whole").write_text("all")
    assert content(tmp_path) == {"target/whole": "all"}


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    write_text(tmp_path / "kept.tmp", "mine")
    write_text(tmp_path / ".hidden", "mine")
    write_text(tmp_path / "deep" / ".report.json.0123abcd.tmp", "half")
    write_text(tmp_path / ".checkpoint-4.shared.tmp" / "model.safetensors", "half")
    write_text(tmp_path / ".checkpoint-4.shared.tmp" / ".state.json.0123abcd.tmp", "half")
    write_text(tmp_path / ".final.0123abcd.old" / "model", "old")  # killed between two renames
    write_text(tmp_path / ".final.0123abce.tmp" / "model", "new")
    write_text(tmp_path / ".other.0123abcd.old" / "model", "old")  # killed before the old one was deleted
    write_text(tmp_path / "other" / "model", "new")
    remove_leftovers(tmp_path)
    expected = {"kept.tmp": "mine", ".hidden": "mine", "final/model": "old", "other/model": "new"}
    assert content(tmp_path) == expected
