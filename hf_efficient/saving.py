"""The two ends of a checkpoint: the part of `EfficientMixin` that writes it, beside the training too, and reads it."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy, rotate_checkpoints

from hf_efficient.checkpoint import load_state, load_weights, save_state
from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, shared_temporary
from hf_efficient.optimization import Optimization
from hf_efficient.phase import Phase
from hf_efficient.resumption import STATE, make_newest, move_up, seal

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class SavingMixin(_Base):
    """Checkpoints of a Trainer class: whole, sealed, with the state of its optimizations."""

    phase: Phase | None  # of `BatchMixin`

    seals = False
    """Whether checkpoints have checksums where no optimization is on, too."""

    saved = ""
    """The last checkpoint that was written."""

    _writing = ""
    """Where stock is writing a checkpoint that is not yet whole."""

    _unfinished: "Future[None] | None" = None
    """A checkpoint that is written, and made whole beside the training (`args.async_save`)."""

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is made whole beside the training, if there is one.

        Raises:
            ConfigError: full disk or the like; that checkpoint is not there, earlier ones are.
        """
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Stock, but the checkpoint gets its name when every process has written its part, and all of it is on the
        disk; then those go that `save_total_limit` leaves no place for.

        Raises:
            ConfigError: full disk or the like, with what to do; what was there stays.
        """
        self.finish_saving()
        folder = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        target = os.path.join(folder, name)
        temporary = shared_temporary(target)
        writes = self.args.should_save
        with ExitStack() as stack:
            if writes:
                stack.enter_context(atomic_folder(target, shared=True))
            self.accelerator.wait_for_everyone()
            self._writing = str(temporary)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writing = ""
            self.accelerator.wait_for_everyone()
            if best := self._best_in(folder):
                self.state.best_model_checkpoint = best
            if writes:
                move_up(temporary / name)
                self.state.save_to_json(str(temporary / STATE))  # with the best checkpoint's lasting name
            rest = stack.pop_all()
        self._complete(rest, Path(target), self.state.best_model_checkpoint)
        self.saved = target
        if self.args.push_to_hub:
            self.finish_saving()
            self._push_from_checkpoint(self.saved)

    def _complete(self, rest: ExitStack, target: Path, best: str | None) -> None:
        """Seal the checkpoint, close its writing, ``rest``, and make place; in a thread with `args.async_save`."""
        seals = self.seals or self.phase is not None

        def complete() -> None:
            with rest:
                if seals:
                    seal(shared_temporary(target))
            make_newest(target)
            rotate_checkpoints(
                output_dir=str(target.parent),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=best,
                use_mtime=True,
            )

        if self.args.should_save and getattr(self.args, "async_save", False):
            thread = ThreadPoolExecutor(1, "checkpoint")
            self._unfinished = thread.submit(complete)
            thread.shutdown(wait=False)
            return
        if self.args.should_save:
            complete()
        self.accelerator.wait_for_everyone()

    def _best_in(self, folder: str) -> str | None:
        """What stock calls the best checkpoint, which it looks for where this one is being written."""
        step = self.state.best_global_step
        if not step or self.args.save_strategy == SaveStrategy.NO:
            return None
        path = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        return path if step == self.state.global_step or os.path.exists(path) else None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Before the end, only checkpoints that were asked for: the model is not what it will be; and whole ones."""
        if self._writing:
            return
        if self.phase is None or self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.phase is None:
            return
        states = self.phase.plan.state_dict()  # on every process: a state may have to be gathered
        if self.args.should_save:
            save_state(output_dir, self.phase.name, states)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_state(resume_from_checkpoint) or {"optimizations": {}}
        running = {one.name for one in self.callback_handler.callbacks if isinstance(one, Optimization)}
        missing = [name for name, kept in state["optimizations"].items() if kept and name not in running]
        if missing:
            raise ConfigError(
                f"{resume_from_checkpoint} was written while training with {', '.join(missing)}; list the same "
                "optimizations to resume from it"
            )
        if self._loads_plainly():
            load_weights(cast(PreTrainedModel, self.model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.finish_saving()
        self.accelerator.wait_for_everyone()
        if self._loads_plainly() and self.state.best_model_checkpoint is not None:
            load_weights(cast(PreTrainedModel, self.model), self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _loads_plainly(self) -> bool:
        """Whether a checkpoint's weights go through `from_pretrained`, which knows how families rename their tensors.

        Stock (5.24) reads the file's names as they are: a ViT, whose names differ on disk, keeps its random weights on
        resume with a logged warning only (transformers issue 43701). Trainings with optimizations must not.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.phase is not None and not sharded and isinstance(self.model, PreTrainedModel)
