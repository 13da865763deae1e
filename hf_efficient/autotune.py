"""Autotune: the fastest way to train on the machine at hand, found by trying ways for a few real steps each.

What is tried is what the optimizations propose (`Optimization.proposals`); every trial is a trainer of the user's own
class on the user's own data. A way is only tried if the most that it could save over the whole training is more than
trying it costs. Among those tried, the faster half goes on to twice as many steps until one is left (successive
halving: Jamieson and Talwalkar 2016, arXiv 1502.07943), or until to know the fastest for certain is worth less than
finding out (expected value of perfect information: Raiffa and Schlaifer 1961, Applied Statistical Decision Theory).
"""

import contextlib
import gc
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_efficient import __version__
from hf_efficient.accounting import BACKWARD, DATA, FORWARD, OPTIMIZER
from hf_efficient.errors import ConfigError
from hf_efficient.machine import machine
from hf_efficient.optimization import Order, changed, from_main
from hf_efficient.plan import OPTIMIZATIONS, build_optimizations, conflict, optimization_class
from hf_efficient.proposal import Observed, Proposal
from hf_efficient.trial import OUT_OF_MEMORY, Trial, mean_loss_within, plain, run_trial
from hf_efficient.tuning import Row, Tuning, remembered

logger = logging.getLogger(__name__)

STEPS = 4
"""That count in the first round of trials."""
ROUNDS = 3
WORTHWHILE = 0.03
"""Less than this share of the time is not worth a change."""
CLOSE = 0.3
"""Ways that differ by less are timed again, in turn with each other, before one is preferred."""
DRIFT = 0.03
"""Share by which a machine's speed differs from trial to trial, beside what steps of one trial differ by."""
DRIFT_CPU = 0.1
"""Share by which a CPU's speed over the minutes of a training differs from that in trials: on two shared cores, whole
trainings took 0.88 to 1.28 times what trials had foretold (`benchmarks/autotune.py` twice, and two runs like it)."""
BATCH = "batch"
SO_FAR = "so far"


@dataclass(frozen=True)
class Way:
    """A way to train: what is added to the user's training arguments.

    Attributes:
        setup_seconds: what it takes before the first step of the training, beside what all ways take.
        gain: share of the time that what was added last can save at the very best.
    """

    optimizations: dict[str, dict[str, Any]] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    setup_seconds: float = 0.0
    gain: float = 0.0

    def with_proposal(self, name: str, proposal: Proposal) -> "Way":
        """What conflicts with it makes way."""
        named = {} if name == BATCH else {name: dict(proposal.settings)}
        named.update({other: dict(settings) for other, settings in proposal.beside.items()})
        kept = {
            one: found
            for one, found in self.optimizations.items()
            if not conflict(build_optimizations({**named, one: found}))
        }
        return Way(
            {**kept, **named},
            {**self.args, **proposal.args},
            self.setup_seconds + proposal.setup_seconds,
            proposal.gain,
        )

    def arguments(self, args: TrainingArguments) -> TrainingArguments:
        """``args`` as this way has them; the user's own optimizations stay.

        Anew in any case: Accelerate still is as the last trial has set it up, which args undo when they are made.
        """
        listed = {**(getattr(args, "optimizations", None) or {}), **self.optimizations}
        return changed(args, optimizations=listed, **self.args)


class Tuner:
    """Finds the fastest `Way`.

    Args:
        build: from training arguments to a trainer with a model of its own.
        args: the user's.
        model: what is trained, to be looked at.
        lengths: tokens of each training example, or None.
        decided: names of optimizations that the user has decided about -> settings, False where not wanted.
    """

    def __init__(
        self,
        build: Callable[[TrainingArguments], Trainer],
        args: TrainingArguments,
        model: nn.Module,
        lengths: torch.Tensor | None,
        decided: Mapping[str, Any],
    ):
        self.build, self.args, self.model, self.lengths = build, _without_later(args), model, lengths
        self.decided = frozenset(decided)
        self.wanted = frozenset(name for name, settings in decided.items() if settings is not False)
        self.listed = build_optimizations(getattr(args, "optimizations", None))
        self.rows: list[Row] = []
        self.way, self.best = Way(), Trial()

    def tune(self) -> Tuning:
        """Try, and tell what was tried.

        Raises:
            ConfigError: training as given is refused; or nothing that was tried fits into memory.
        """
        began = time.perf_counter()
        with _little_to_collect():
            reference = self.best = self._try("as given", Way(), STEPS)
            if reference.error not in ("", OUT_OF_MEMORY):
                raise ConfigError(reference.error)
            for name, proposals in self._groups():
                self._choose(name, proposals)
        if self.best.error:
            raise ConfigError(
                f"autotune: training as given fails ({self.best.error}), and nothing that was tried helps; take a "
                "smaller per_device_train_batch_size with more gradient_accumulation_steps, or shorter examples"
            )
        return Tuning(
            optimizations=self.way.optimizations,
            args=self.way.args,
            before_s=None if reference.error else reference.seconds,
            expected_s=self.best.seconds + self.way.setup_seconds,
            expected_error_s=self._expected_error(),
            tuning_s=time.perf_counter() - began,
            rows=self.rows,
        )

    def _expected_error(self) -> float:
        drift = DRIFT_CPU if self.args.device.type == "cpu" else DRIFT
        return 2 * _standard_error(self.best, drift)

    def _groups(self) -> Iterable[tuple[str, list[Proposal]]]:
        """Optimization -> what it proposes now: first those that may save most, last those that take long to set up."""
        if self.best.error:
            yield BATCH, list(_smaller_batches(self.args))
        waiting = [name for name in OPTIMIZATIONS if name not in self.decided and self._goes_along(name)]
        free = frozenset(waiting)
        while waiting:
            observed = self._observed()
            own = {
                name: [
                    one for one in optimization_class(name, "autotune").proposals(observed) if free >= set(one.beside)
                ]
                for name in waiting
                if name not in self.way.optimizations  # taken beside another
            }
            proposed = from_main(own, self.args)
            waiting = [name for name, ones in proposed.items() if ones]
            if waiting:
                name = max(waiting, key=lambda name: _urgency(proposed[name]))
                waiting.remove(name)
                yield name, proposed[name]

    def _goes_along(self, name: str) -> bool:
        """With all that the user has listed, which trials leave out in part."""
        (one,) = build_optimizations({name: {}})  # what conflicts may depend on settings
        return not one.conflicts & self.wanted and not any(name in other.conflicts for other in self.listed)

    def _observed(self) -> Observed:
        def share(*parts: str) -> float:
            return sum(self.best.shares.get(part, 0.0) for part in parts)

        return Observed(
            args=self.way.arguments(self.args),
            model=self.model,
            lengths=self.lengths,
            computing=share(FORWARD, BACKWARD),
            updating=share(OPTIMIZER),
            waiting=share(DATA),
            padding=self.best.padding,
            out_of_memory=self.best.error == OUT_OF_MEMORY,
        )

    def _choose(self, name: str, proposals: Sequence[Proposal]) -> None:
        """Take the fastest of ``proposals`` if it is faster than the best so far."""
        contenders: dict[str, Way] = {}
        for proposal in proposals:
            label = _label(name, proposal)
            if reason := self._does_not_pay(proposal):
                self.rows.append(Row(label, "skipped", reason))
            else:
                way = self.way.with_proposal(name, proposal)
                replaced = [other for other in self.way.optimizations if other not in way.optimizations]
                contenders[f"{label} in place of {', '.join(replaced)}" if replaced else label] = way
        trials: dict[str, Trial] = {}
        for label, way in contenders.items():
            trial = self._try(label, way, STEPS)
            if not trial.error:
                trials[label] = trial
        if trials:
            self._halve(contenders, trials)

    def _halve(self, contenders: Mapping[str, Way], trials: dict[str, Trial]) -> None:
        """Keep the faster half, in rounds of more and more steps, until one way is clearly the fastest."""
        ways = {SO_FAR: self.way, **contenders}
        found = dict(trials) if self.best.error else {SO_FAR: self.best, **trials}
        timed: dict[str, list[float]] = {}

        def cost(label: str) -> float:
            return found[label].seconds + ways[label].setup_seconds

        for step in range(1, ROUNDS):
            ranked = sorted(found, key=cost)
            close = [label for label in ranked if cost(label) <= (1 + CLOSE) * cost(ranked[0])]
            close = close[: max(2, (len(ranked) + 1) // 2)]
            if len(close) < 2:
                break
            first, *others = close
            worth = max(value_of_knowing(cost(one) - cost(first), found[one], found[first]) for one in others)
            if worth <= sum(_trial_seconds(found[label], STEPS * 2**step) for label in close):
                break
            again = {label: self._try(label, ways[label], STEPS * 2**step) for label in close}
            for label, trial in again.items():  # one after the other, and all rounds count: a machine has slow seconds
                timed[label] = [*timed.get(label, []), *trial.step_seconds]
            fit = {label: trial for label, trial in again.items() if not trial.error}
            found = {label: replace(trial, step_seconds=timed[label]) for label, trial in fit.items()} or found
        winner = min(found, key=cost)
        before = None if self.best.error else cost(SO_FAR) if SO_FAR in found else None
        self.best = found.get(SO_FAR, self.best)
        if winner != SO_FAR and (before is None or cost(winner) < (1 - WORTHWHILE) * before):
            self.way, self.best = ways[winner], found[winner]
            self._judge(winner, "taken")

    def _does_not_pay(self, proposal: Proposal) -> str:
        """Why it is not worth trying; empty if it is."""
        if self.best.error:
            return ""
        if proposal.gain < WORTHWHILE:
            return f"it could save {100 * max(proposal.gain, 0):.1f} % of the time at most"
        saved = proposal.gain * self.best.seconds
        costs = _trial_seconds(self.best, STEPS) + 2 * proposal.setup_seconds
        if saved > costs:
            return ""
        twice = ", setting it up twice included" if proposal.setup_seconds else ""
        return f"it could save {saved:.1f} s at most, and trying it takes {costs:.1f} s{twice}"

    def _try(self, label: str, way: Way, steps: int) -> Trial:
        trial = run_trial(self.build, way.arguments(self.args), steps)
        reference = self.best
        if not trial.error and reference.losses and not mean_loss_within(trial, reference):
            means = [sum(one.losses[:STEPS]) / len(one.losses[:STEPS]) for one in (trial, reference)]
            trial = replace(trial, error=f"its loss is {means[0]:.4g}, where it was {means[1]:.4g}")
        verdict, settings = "rejected" if trial.error else "tried", {"optimizations": way.optimizations, **way.args}
        self.rows.append(Row(label, verdict, trial.error, dict(plain(trial)), settings))
        logger.info("autotune: %s", self.rows[-1])
        return trial

    def _judge(self, label: str, verdict: str) -> None:
        last = max(index for index, row in enumerate(self.rows) if row.way == label)
        self.rows[last] = replace(self.rows[last], verdict=verdict)


@contextlib.contextmanager
def _little_to_collect() -> Iterator[None]:
    """Garbage collections pass over all objects that there are now: each trial's take as long as its steps else."""
    if gc.get_freeze_count():  # somebody else has done so
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _smaller_batches(args: TrainingArguments) -> Iterable[Proposal]:
    """The same effective batch in smaller parts, for when memory runs out."""
    size, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
    for by in (2, 4, 8):
        if size % by == 0:
            yield Proposal(args={"per_device_train_batch_size": size // by, "gradient_accumulation_steps": parts * by})


def _urgency(proposals: Sequence[Proposal]) -> tuple[bool, float]:
    return not any(proposal.setup_seconds for proposal in proposals), max(proposal.gain for proposal in proposals)


def value_of_knowing(slower: float, *trials: Trial) -> float:
    """Seconds that knowing the faster of two ways for certain saves on average, the one that now seems to be by
    ``slower`` seconds being taken else.

    The difference is taken for normally distributed, with the errors of both ``trials`` and `DRIFT`.
    """
    error = math.hypot(*(_standard_error(one, DRIFT) for one in trials))
    if not error:
        return 0.0
    normal, ratio = NormalDist(), slower / error
    return error * (normal.pdf(ratio) - ratio * normal.cdf(-ratio))


def _standard_error(trial: Trial, drift: float) -> float:
    """Of a trial's `seconds`, where the machine's speed differs by a share ``drift``."""
    return math.hypot(trial.error_of_seconds / 2, drift * trial.seconds)


def _trial_seconds(trial: Trial, steps: int) -> float:
    """What another trial like this would take, of so many steps that count; its warm-up is part of its setting up."""
    return trial.setup_seconds + steps * trial.seconds / max(1, trial.steps)


def _label(name: str, proposal: Proposal) -> str:
    told = {**proposal.settings, **proposal.args}
    label = name + (f" ({', '.join(f'{key}={value}' for key, value in told.items())})" if told else "")
    return " with ".join([label, *(_label(other, Proposal(settings)) for other, settings in proposal.beside.items())])


def _without_later(args: TrainingArguments) -> TrainingArguments:
    """Without optimizations that cut or round the model: their work before the first step has nothing to do with speed
    in training, and takes long."""
    listed = getattr(args, "optimizations", None) or {}
    early = {name: value for name, value in listed.items() if _is_early(name)}
    return args if early == listed else changed(args, optimizations=early)


def _is_early(name: str) -> bool:
    return optimization_class(name, "optimizations").order < Order.STRUCTURE


_ARGS_THAT_MATTER = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim", "bf16",
    "fp16", "torch_compile", "train_sampling_strategy", "dataloader_num_workers", "world_size",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """What is to be trained.

    Attributes:
        args, model, lengths: as for `Tuner`.
        trainer_class: whose trainers are tried.
        examples: in the training set; None where that is unknown.
        listed: all optimizations that the user has decided about, by name, with their settings.
    """

    trainer_class: type
    args: TrainingArguments
    model: nn.Module
    examples: int | None
    lengths: torch.Tensor | None
    listed: Mapping[str, Any]

    def circumstances(self) -> dict[str, Any]:
        """All that a choice depends on, as plain values."""
        parameters = self.model.named_parameters()
        shapes = repr([(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in parameters])
        lengths = None if self.lengths is None else hashlib.sha256(self.lengths.numpy().tobytes()).hexdigest()
        return {
            "version": __version__,
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "device": str(self.args.device),
            "trainer": f"{self.trainer_class.__module__}.{self.trainer_class.__qualname__}",
            "model": [type(self.model).__name__, hashlib.sha256(shapes.encode()).hexdigest()],
            "examples": self.examples,
            "lengths": lengths,
            "args": {name: str(getattr(self.args, name, None)) for name in _ARGS_THAT_MATTER},
            "listed": {name: str(settings) for name, settings in sorted(self.listed.items())},
        }


def tuned(build: Callable[[TrainingArguments], Trainer], training: Training) -> tuple[TrainingArguments, Tuning]:
    """Training arguments for the fastest training, and how they were found.

    A choice that the output folder has checkpoints of is taken again, whatever would be measured now; so is one that
    this machine has made before for such a model and such data (`hf_efficient.tuning.remembered`).

    Args:
        build: as for `Tuner`.

    Raises:
        ConfigError: training as given is refused; or nothing that was tried fits into memory.
    """
    tuner = Tuner(build, training.args, training.model, training.lengths, training.listed)
    tuning = remembered(tuner.tune, training.args, training.circumstances())
    return Way(tuning.optimizations, tuning.args).arguments(training.args), tuning
