"""A map between models of different widths, trained beside them."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce


class Projector:
    """A linear map from the student's width to the teacher's, trained beside the model and no part of it."""

    def __init__(self, student: int, teacher: int, stack: int, device: torch.device):
        weight = torch.empty(teacher, student)
        # from a generator of its own: the training's random numbers are left alone, processes start alike
        torch.nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(stack))
        self.weight = torch.nn.Parameter(weight.to(device))
        self.optimizer = torch.optim.AdamW([self.weight], weight_decay=0.0)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.float() @ self.weight.T

    def step(self, learning_rate: float, processes: int) -> None:
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        if processes > 1:
            self.weight.grad = reduce(self.weight.grad, "mean")
        # fp16 training multiplies gradients by a factor that AdamW does not notice, unless it overflows
        if torch.isfinite(self.weight.grad).all():
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])
