"""A recipe that is searched in seconds."""

from pathlib import Path

import pytest

from tests.test_run import recipe as recipe

SEARCH = """
search:
  space:
    stages.compress.training.learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
    stages.compress.optimizations.structured_pruning.keep_layers: [[0], [1], [0, 1]]
  objectives: [accuracy, bytes]
"""


@pytest.fixture
def searched(recipe: Path) -> Path:
    """The recipe of a tiny model, with a search: block."""
    recipe.write_text(recipe.read_text() + SEARCH)
    return recipe
