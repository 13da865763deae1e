"""What was computed of each example, on disk: what a teacher says, or frozen layers; later epochs only look it up.

Shards of some hundred examples, each written atomically under a random name: processes never write one file, and a kill
leaves whole shards only. Which shards count changes at `exchange` alone, and `state_dict` lists them: a training
resumed from there looks examples up in the very same shards as the one that went on, and computes the same rest in the
same batches. Shards written later are left aside, for what a model computes depends in the last bits on the batch that
an example came in.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_path

logger = logging.getLogger(__name__)

FOLDER = "_example_cache"
"""In a phase's folder; Trainer keeps names with this first letter from the Hub."""
SHARD_EXAMPLES, SHARD_BYTES = 256, 64_000_000

Row = dict[str, torch.Tensor]
"""What was computed of one example: field -> tensor without padding."""


class ExampleCache:
    """Rows of one model, by the key of their example.

    Args:
        owner: the optimization that computes them, for messages.
        folder: of this model alone; made when needed.
        limit_bytes: of all shards together, beyond which nothing more is written.
        state: what `state_dict` gave, to see the same shards; None takes all that lie in ``folder``.
    """

    def __init__(self, owner: str, folder: Path, limit_bytes: float, state: Mapping[str, Any] | None = None):
        self.owner, self.folder, self.limit_bytes = owner, folder, limit_bytes
        self._files: dict[str, Any] = {}
        self._fields: dict[str, list[str]] = {}
        self._visible: dict[str, str] = {}  # key -> shard that every process sees
        self._own: dict[str, str] = {}  # key -> shard of this process since the last exchange
        self._pending: dict[str, Row] = {}
        self._new: list[str] = []
        self._pending_bytes = self._own_bytes = self._visible_bytes = 0
        self._hits = self._lookups = 0  # of this process since the last exchange
        given = dict(state or {})
        self._writes = given.get("writes", True)
        self._totals: list[int] = given.get("totals", [0, 0])  # hits, lookups of all processes
        self._epochs, self._epoch_hits = given.get("epochs", [0, 0])
        self._shards: list[str] = []
        found = given.get("shards")
        self._show(
            gather_object([sorted(path.name for path in folder.glob("*.safetensors"))])[0] if found is None else found
        )

    @property
    def share_served(self) -> float:
        """Share of looked-up examples that were found, up to the last `exchange`, over all processes."""
        return self._totals[0] / self._totals[1] if self._totals[1] else 0.0

    def __contains__(self, key: str) -> bool:
        return key in self._pending or key in self._visible or key in self._own

    def get(self, key: str) -> Row | None:
        self._lookups += 1
        row = self._pending.get(key)
        if row is None:
            shard = self._visible.get(key) or self._own.get(key)
            if shard is None:
                return None
            row = {field: self._files[shard].get_tensor(f"{key}/{field}") for field in self._fields[shard]}
        self._hits += 1
        return row

    def put(self, key: str, row: Row) -> None:
        """Keep ``row``, unless there is no more room or inputs never repeat."""
        if not self._writes:
            return
        size = sum(tensor.nbytes for tensor in row.values())
        held = self._visible_bytes + (self._own_bytes + self._pending_bytes + size) * PartialState().num_processes
        if held > self.limit_bytes:
            self._stop(f"the cache is full ({self.limit_bytes / 1e9:g} GB)", "raise cache_gb to keep all")
            return
        self._pending[key] = row
        self._pending_bytes += size
        if len(self._pending) >= SHARD_EXAMPLES or self._pending_bytes >= SHARD_BYTES:
            self._flush()

    def exchange(self) -> None:
        """Write what is pending, and see what the other processes wrote; each of them calls this at the same time."""
        self._flush()
        told = gather_object([(self._new, self._hits, self._lookups, self._writes)])
        self._own, self._new, self._own_bytes, self._hits, self._lookups = {}, [], 0, 0, 0
        for shards, hits, lookups, writes in told:
            self._totals = [self._totals[0] + hits, self._totals[1] + lookups]
            self._epoch_hits += hits
            self._writes = self._writes and writes
            self._show(shards)

    def end_epoch(self) -> None:
        """`exchange`; and stop writing if all of an epoch's inputs were new although there had been one before."""
        self.exchange()
        if self._epochs and not self._epoch_hits:
            self._stop("no input of this epoch came a second time", "set cache: false where inputs are augmented")
        self._epochs, self._epoch_hits = self._epochs + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """As of the last `exchange`, which is to come right before."""
        epochs = [self._epochs, self._epoch_hits]
        return {"shards": list(self._shards), "writes": self._writes, "totals": list(self._totals), "epochs": epochs}

    def _stop(self, reason: str, remedy: str) -> None:
        if self._writes:
            logger.warning("%s: %s; it takes no more, and the rest is computed: %s", self.owner, reason, remedy)
        self._writes = False

    def _flush(self) -> None:
        if not self._pending:
            return
        name = f"{uuid4().hex}.safetensors"
        tensors = {f"{key}/{field}": tensor for key, row in self._pending.items() for field, tensor in row.items()}
        try:
            with atomic_path(self.folder / name) as path:
                save_file(tensors, path)
        except ConfigError as error:  # a full disk costs time, not the training
            self._stop(str(error), "or set cache: false")
        else:
            if self._open(name):
                self._own.update(dict.fromkeys(self._pending, name))
                self._new.append(name)
                self._own_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def _show(self, shards: list[str]) -> None:
        """Let every process see ``shards``; of an example in several of them the first counts."""
        for name in shards:
            if name in self._files or self._open(name):
                self._shards.append(name)
                self._visible_bytes += (self.folder / name).stat().st_size
                for key in self._keys(name):
                    self._visible.setdefault(key, name)

    def _open(self, name: str) -> bool:
        try:
            file = safe_open(self.folder / name, framework="pt")
        except (OSError, SafetensorError) as error:
            logger.warning("cannot read %s (%s): its examples are computed again", self.folder / name, error)
            return False
        names = list(file.keys())
        self._files[name] = file
        self._fields[name] = sorted({entry.partition("/")[2] for entry in names})
        return True

    def _keys(self, name: str) -> set[str]:
        return {entry.partition("/")[0] for entry in self._files[name].keys()}  # noqa: SIM118  (not a dict)
