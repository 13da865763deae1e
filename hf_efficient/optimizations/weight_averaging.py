"""Weight averaging: what is evaluated, saved and finished is the average of the weights of the latest steps."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.optimization import Optimization, Order


@dataclass(eq=False, kw_only=True)
class WeightAveraging(Optimization):
    """Average the weights over the latest steps, over more of them the longer the training is.

    With the weights that it has after every so many steps, for the t-th time, ``average += (eta + 1) / (t + eta) *
    (weights - average)``: polynomial-decay averaging (Shamir and Zhang 2013, arXiv 1212.1824, section 4). The training
    itself goes on with the weights as they are; evaluations, checkpoints and the finished model have the average. While
    the learning rate is high, an average of late weights stands for further steps (Kaddour 2022, arXiv 2209.14981).
    """

    eta: float = 8.0
    """The more, the fewer steps it reaches back: on average 1 / (eta + 2) of those so far; 0: the mean of all."""
    every: int = 5
    """Steps after which the weights are averaged."""

    name = "weight_averaging"
    order = Order.PRECISION
    conflicts = frozenset({"layer_freezing", "pruning", "weight_fusion"})  # they look at weights between steps

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ConfigError(f"weight_averaging.eta must be a number from 0 on, got {self.eta:g}")
        if self.every < 1:
            raise ConfigError(f"weight_averaging.every must be at least 1, got {self.every}")
        self.reset()

    def reset(self) -> None:
        self._saved: dict[str, Any] = {}
        self._weights: dict[str, nn.Parameter] = {}
        self._others: dict[str, torch.Tensor] = {}  # the average; while the model has it, the weights that it trains
        self._shown = False
        self._times = 0

    def whole_weights(self) -> str:
        return "averages whole weights"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved, self._saved = self._saved, {}
        self._weights = {name: weight for name, weight in kwargs["model"].named_parameters() if weight.requires_grad}
        self._others = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._times, self._shown = 0, False
        if saved:
            for name, other in self._others.items():
                other.copy_(saved["others"][name])
            self._times, self._shown = saved["times"], saved["shown"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._times += 1
            averaged = get_ema_multi_avg_fn(1 - (self.eta + 1) / (self._times + self.eta))
            averaged(list(self._others.values()), list(self._weights.values()), self._times)
        self.show(control.should_evaluate or control.should_save)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(self._shown or control.should_evaluate or control.should_save)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._times:
            warnings.warn(
                f"weight_averaging: every={self.every}, and the training had {state.global_step} steps; lower every",
                NoEffectWarning,
                2,
            )
        elif not (args.load_best_model_at_end and state.best_model_checkpoint):  # which has been loaded by now
            self.show(True)
        self._weights, self._others = {}, {}

    @torch.no_grad()
    def show(self, shown: bool) -> None:
        """Let the model have the average, or the weights that it trains. In place: an optimizer holds the tensors."""
        if not self._times or shown == self._shown:
            return
        self._shown = shown
        for name, weight in self._weights.items():
            held = weight.detach().clone()
            weight.copy_(self._others[name])
            self._others[name].copy_(held)

    def state_dict(self) -> dict[str, Any]:
        others = {name: other.cpu() for name, other in self._others.items()}
        return {"others": others, "times": self._times, "shown": self._shown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state

    def describe(self) -> dict[str, Any]:
        reach = self._times * self.every / (self.eta + 2)
        return {"averaged_times": self._times, "steps_reached_back": round(reach, 1)}
