"""Parameter groups in parts."""

import torch

from hf_efficient.functional.parameter_groups import combined, split_group


def test_a_group_in_parts() -> None:
    group = {"params": [3, 1, 4, 2], "lr": 0.1}
    parts = split_group(group, lambda number: number % 2 == 0)
    assert parts == {False: {"params": [3, 1], "lr": 0.1}, True: {"params": [4, 2], "lr": 0.1}}
    assert list(parts) == [False, True]
    assert split_group({"params": []}, bool) == {}


class Doubled:
    def __init__(self, parameters: object, lr: float):
        super().__init__(parameters, lr=2 * lr)  # type: ignore[call-arg]


def test_an_optimizer_class_keeps_its_name() -> None:
    made = combined(Doubled, torch.optim.SGD)
    assert (made.__name__, made.__module__) == ("SGD", __name__)
    assert made([torch.nn.Parameter(torch.zeros(1))], lr=0.5).param_groups[0]["lr"] == 1.0
