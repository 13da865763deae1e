"""Rewards: a toy that can be checked by hand, and functions of a user that must hold what they promise."""

import sys
from pathlib import Path

import pytest

from hf_efficient.errors import ConfigError, DataError
from hf_efficient.tasks.rewards import TRUST, load_reward, wanted_characters

ROW = {"prompt": "no", "wanted": "aeiou"}


def test_the_toy_by_hand() -> None:
    said = ["aa bb 1a", "", "a", "eieieieieiei", "AEIOUAEIOU"]
    found = wanted_characters(said, ["aeiou"] * 5)
    assert found == pytest.approx([3 / 8, 0, 1 / 8, 1, 0]), "short texts count as eight characters, spaces as nothing"


OWN = '''
"""Rewards of a user."""

def score(completions, **columns):
    return [float(len(text)) for text in completions]

def columned(completions, points, weight=2, **columns):
    return [weight * one for one in points]

def closed(completions):
    return [0.0]

async def later(completions, **columns):
    return [0.0]

def short(completions, **columns):
    return [0.0] * (len(completions) + 1)

def nothing(completions, **columns):
    return [None for _ in completions]

def worthless(completions, **columns):
    return [float("nan") for _ in completions]

def words(completions, **columns):
    return "x" * len(completions)

def single(completions, **columns):
    return 1.0

def first_word(completions, **columns):
    return [float(text.split()[0] == "a") for text in completions]

limit = 3
'''


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST, "1")


def test_code_is_not_run_unless_the_user_says_so(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST, "0")
    for name in (f"{own}:score", "os:getcwd"):
        with pytest.raises(ConfigError, match=f"'{name}' is code, .* allow it with {TRUST}=1"):
            load_reward(name)
    assert load_reward("wanted_characters").name == "wanted_characters"


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own_rewards.py").write_text(OWN)
    return str(tmp_path / "own_rewards.py")


def test_rewards_of_one_s_own(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "no", "points": 3}, {"prompt": "a", "points": 4}]
    assert load_reward(f"{own}:score").of(rows, ["abc", ""], [[1], []]) == [3.0, 0.0]
    assert load_reward(f"{own}:columned").of(rows, ["abc", ""], [[1], []]) == [6.0, 8.0]
    monkeypatch.syspath_prepend(Path(own).parent)
    assert load_reward("own_rewards:score").of(rows, ["abc", ""], [[1], []]) == [3.0, 0.0]
    sys.modules.pop("own_rewards")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("wanted_character", r"data.reward: unknown reward 'wanted_character'; did you mean 'wanted_characters'.*path"),
        ("{own}:scor", r"own_rewards.py': unknown function 'scor'; did you mean 'score'"),
        ("{own}:limit", r"unknown function 'limit'.*Allowed: closed, columned"),
        ("nowhere.py:score", r"data.reward: no file at nowhere.py"),
        ("no_such_module:score", r"cannot import 'no_such_module' \(ModuleNotFoundError.*name a file \(path.py:"),
        ("{broken}:score", r"cannot import '.*broken.py' \(SyntaxError: .*correct it"),
    ],
)
def test_reward_that_cannot_be_had(own: str, tmp_path: Path, reward: str, message: str) -> None:
    (tmp_path / "broken.py").write_text("def score(:")
    with pytest.raises(ConfigError, match=message):
        load_reward(reward.format(own=own, broken=tmp_path / "broken.py"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("closed", r"own_rewards.py:closed' must take every column; add \*\*columns"),
        ("later", r"own_rewards.py:later' is async; give a plain function"),
        ("short", r"returned 2 values for 1 completions; let it return a list with one finite number for each"),
        ("nothing", r"returned 1 values, None among them, for 1 completions"),
        ("worthless", r"returned 1 values, nan among them"),
        ("words", r"returned str 'x' for 1 completions"),
        ("single", r"returned float 1.0 for 1 completions"),
        ("first_word", r"fails on an empty completion of the first row \(IndexError: .*a model may say nothing"),
    ],
)
def test_reward_that_does_not_hold_what_it_promises(own: str, function: str, message: str) -> None:
    reward = load_reward(f"{own}:{function}")
    with pytest.raises(ConfigError, match=message):
        reward.check(["wanted"], "data.train") or reward.try_on(ROW)


def test_columns_of_rewards(own: str) -> None:
    with pytest.raises(DataError, match=r"data.train: reward '.*columned' asks for a column: unknown column 'points'"):
        load_reward(f"{own}:columned").check(["wanted"], "data.train")
    load_reward(f"{own}:columned").check(["wanted", "points"], "data.train")
