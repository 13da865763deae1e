"""What a run prepares for recommending: items, their vectors, the log and the ranker, as files without code in them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_path, write_json, write_text
from hf_efficient.tasks.apps.catalogue import Item, item_of, plain
from hf_efficient.tasks.apps.interactions import Interaction
from hf_efficient.tasks.apps.item_vectors import load_vectors, save_vectors
from hf_efficient.tasks.apps.ranker import Ranker

ITEMS, LOG, RANKER = "items.jsonl", "log.parquet", "ranker.json"


@dataclass(frozen=True)
class Prepared:
    """Attributes:
    vectors: one for each of `items`.
    half_life: seconds, of popularity.
    runtime: what embedded the items, and will.
    """

    items: Sequence[Item]
    vectors: np.ndarray
    log: Sequence[Interaction]
    ranker: Ranker
    half_life: float
    runtime: str

    def save(self, folder: Path, model: str) -> None:
        """Write to ``folder``; ``model`` is the fingerprint of the encoder."""
        lines = [json.dumps(plain(item), ensure_ascii=False) + "\n" for item in self.items]
        write_text(folder / ITEMS, "".join(lines))
        save_vectors(folder, self.vectors, model)
        with atomic_path(folder / LOG) as path:
            pd.DataFrame(self.log, columns=list(Interaction._fields)).to_parquet(path)
        told = {"half_life_days": self.half_life / 86400, "embedded_by": self.runtime}
        write_json(folder / RANKER, {**self.ranker.to_dict(), **told})

    @classmethod
    def load(cls, folder: Path, model: str) -> "Prepared":
        """What `save` wrote.

        Raises:
            ConfigError: it is missing or damaged, or was made with another model.
        """
        try:
            lines = (folder / ITEMS).read_text(encoding="utf-8").split("\n")
            items = [item_of(json.loads(line)) for line in lines if line]
            log = [Interaction(*row) for row in pd.read_parquet(folder / LOG).itertuples(index=False)]
            values = json.loads((folder / RANKER).read_text(encoding="utf-8"))
            half_life = 86400 * float(values["half_life_days"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            words = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"what was prepared in {folder} cannot be read ({words}); run the recipe again"
            ) from error
        vectors = load_vectors(folder, model, len(items))
        return cls(items, vectors, log, Ranker.from_dict(values), half_life, values["embedded_by"])
