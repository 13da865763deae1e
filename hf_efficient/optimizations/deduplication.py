"""Deduplication: examples that say again what others say are not trained on."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.duplicates import Duplicates, find_duplicates
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.runtimes import require_packages

INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")
LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


@dataclass(eq=False, kw_only=True)
class Deduplication(Optimization):
    """Keep one of the examples whose inputs are the same, or texts nearly the same, and whose labels are.

    Examples with the same inputs and other labels all stay, and are counted.
    """

    near: float = 0.9
    """Share of common token n-grams (Jaccard) from which on texts are the same; 1 looks for exact duplicates only."""
    ngram: int = 3
    """Tokens in a row that are compared."""
    permutations: int = 128
    """Of MinHash: more overlook fewer near duplicates and take longer."""

    name = "deduplication"
    order = Order.DATA

    def __post_init__(self) -> None:
        if not 0 < self.near <= 1:
            raise ConfigError(f"near must be above 0 and at most 1, got {self.near:g}")
        for setting, value, least in (("ngram", self.ngram, 1), ("permutations", self.permutations, 16)):
            if value < least:
                raise ConfigError(f"{setting} must be at least {least}, got {value}")
        self.reset()

    def reset(self) -> None:
        self._told: dict[str, Any] = {}

    def check(self, context: Context) -> None:
        if self.near < 1:
            require_packages(("datasketch",), "deduplication of near duplicates (near: 1 needs nothing)", "data")

    def prepare_data(self, dataset: Any) -> Any:
        if not has_length(dataset):
            raise ConfigError("deduplication compares all examples, and a streamed data set has no end; drop it")
        count, found = len(dataset), self._find(dataset)
        self._told = {
            "examples": count,
            "exact_duplicates": found.exact,
            "near_duplicates": found.near,
            "same_inputs_other_labels": found.conflicting,
        }
        if len(found.kept) == count:
            warnings.warn(f"deduplication: no duplicates in {count} examples", NoEffectWarning, 2)
            return dataset
        if isinstance(dataset, datasets.Dataset):
            return dataset.select(found.kept)
        return Subset(dataset, found.kept)  # type: ignore[arg-type]

    def _find(self, dataset: Any) -> Duplicates:
        rows = iter(dataset) if isinstance(dataset, datasets.Dataset) else map(dataset.__getitem__, range(len(dataset)))
        shown = tqdm(rows, total=len(dataset), desc="duplicates", disable=None)
        return find_duplicates(map(_compared, shown), self.near, self.ngram, self.permutations)

    def describe(self) -> dict[str, Any]:
        return self._told


def _compared(row: Mapping[str, Any]) -> tuple[bytes, bytes, Sequence[int] | None]:
    """Inputs and labels of an example, as bytes, and its tokens."""
    names = [name for name in INPUTS if name in row] or [name for name in row if name not in LABELS]
    inputs, labels = (b"".join(_bytes(row, chosen)) for chosen in (names, [name for name in LABELS if name in row]))
    return inputs, labels, row.get("input_ids")


def _bytes(row: Mapping[str, Any], names: Sequence[str]) -> Iterator[bytes]:
    for name in names:
        value = np.asarray(row[name])
        yield f"{name}{value.shape}".encode()
        yield value.tobytes()
