"""Which app serves a task."""

import pytest

from hf_efficient import ConfigError
from hf_efficient.app import default_app


def test_an_app_without_settings_is_the_default() -> None:
    assert (default_app("text-classification"), default_app("token-classification")) == ("labels", "entities")


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("sentence-similarity", r"by itself; name one: app.name=recommendation$"),
        ("translation", r"no app serves models of translation; use transformers' pipeline"),
    ],
)
def test_only_apps_that_fit_are_named(task: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        default_app(task)
