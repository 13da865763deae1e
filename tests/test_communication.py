"""Two processes that send each other less end where they should, and together; what does not go with it is refused."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

from hf_efficient import ConfigError, EfficientTrainer, EfficientTrainingArguments, NoEffectWarning
from hf_efficient.communication import Communication, _parts
from tests.communication_worker import BATCH, EPOCHS, RATE, WAYS, without_dropout
from tests.test_distributed import on_two_processes
from tests.test_parity import assert_same_tensors, build
from tests.tiny import pad, text_examples

STEPS = EPOCHS * len(text_examples()) // (2 * BATCH)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of both ranks."""
    folder = tmp_path_factory.mktemp("communication")
    on_two_processes("tests.communication_worker", folder, timeout_s=110)
    return folder


def load(folder: Path, way: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{way}-rank{rank}.pt", weights_only=True)


def greatest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((weight - other[name]).abs().max()) for name, weight in one.items())


@torch.enable_grad()
def apart(met_after: set[int], parts: int = 1) -> dict[str, torch.Tensor]:
    """Weights of two models that learn by themselves, by hand, and are averaged after some steps and at the end.

    Args:
        parts: of each of a model's batches.
    """
    first = without_dropout("text")["model"].train()
    models = [first, copy.deepcopy(first)]
    examples, size = text_examples(), BATCH // parts
    for step in range(STEPS):
        for rank, model in enumerate(models):
            model.zero_grad()
            for part in range(step * parts, (step + 1) * parts):
                start = (2 * part + rank) * size % len(examples)
                model(**pad(examples[start : start + size])).loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= RATE / parts * parameter.grad
        if step + 1 in {*met_after, STEPS}:
            with torch.no_grad():
                for pair in zip(*(model.parameters() for model in models), strict=True):
                    mean = (pair[0] + pair[1]) / 2
                    for parameter in pair:
                        parameter.copy_(mean)
    return first.state_dict()


@pytest.mark.parametrize("way", [*WAYS, "resumed"])
def test_processes_end_together_and_have_learnt(way: str, two: Path) -> None:
    one, other = load(two, way, 0), load(two, way, 1)
    assert_same_tensors(one["weights"], other["weights"])
    half = len(one["losses"]) // 2  # an epoch each
    assert one["losses"][half:].mean() < one["losses"][:half].mean()


@pytest.mark.parametrize(("way", "most"), [("fp16", 1e-3), ("bf16", 1e-2), ("power_sgd", 1.0)])
def test_what_is_sent_is_rounded(way: str, most: float, two: Path) -> None:
    assert 0 < greatest_difference(load(two, "exact")["weights"], load(two, way)["weights"]) < most


@pytest.mark.parametrize(
    ("way", "met_after"),
    [
        ("apart", set()),
        ("two_apart", {2, 4, 6, 8, 10}),
        ("saved", {3, 6, 9}),
        ("resumed", {3, 6, 9}),
        ("evaluated", {5, 10}),
    ],
)
def test_local_steps_are_those_of_models_that_meet_now_and_then(way: str, met_after: set[int], two: Path) -> None:
    expected = apart(met_after)
    found = load(two, way)["weights"]
    assert greatest_difference(found, expected) < 1e-5
    assert greatest_difference(found, load(two, "exact")["weights"]) > 1e-4


def test_a_step_of_several_batches_is_one_step(two: Path) -> None:
    expected = apart({2, 4, 6, 8, 10}, parts=2)
    assert greatest_difference(load(two, "accumulated")["weights"], expected) < 1e-5
    assert greatest_difference(expected, apart({1, 3, 5, 7, 9}, parts=2)) > 1e-4


def test_needs_processes_that_are_alike(two: Path) -> None:
    for rank in (0, 1):
        pruned, guarded, sparse = load(two, "refused", rank)
        assert "pruning ranks whole weights, which differ between processes" in pruned
        assert "max_skipped_steps needs processes that take the same steps" in guarded
        assert "embeddings of this model have sparse ones" in sparse


def arguments(**given: Any) -> Any:
    cpu = torch.device("cpu")
    return SimpleNamespace(**{"world_size": 2, "fp16": False, "device": cpu, "max_skipped_steps": None, **given})


def test_parts_of_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="whole models on each process"):
        Communication(gradients="bf16").check(arguments(), is_whole=False, optimizations=[])


@pytest.mark.parametrize("given", [{"fp16": True}, {"max_skipped_steps": 3}])
def test_power_sgd_would_keep_what_is_not_finite(given: dict[str, Any]) -> None:
    Communication(gradients="power_sgd").check(arguments(), is_whole=True, optimizations=[])
    with pytest.raises(ConfigError, match=f"{next(iter(given))} leaves out steps"):
        Communication(gradients="power_sgd").check(arguments(**given), is_whole=True, optimizations=[])


def test_what_changes_nothing_says_so() -> None:
    with pytest.warns(NoEffectWarning, match="sent without it, too"):
        Communication().check(arguments(), is_whole=True, optimizations=[])


def test_weights_of_several_types_are_averaged_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.communication.AVERAGED_AT_ONCE", 40)
    tensors = [torch.zeros(8), torch.zeros(8), torch.zeros(8), torch.zeros(2, dtype=torch.float16)]
    assert [len(part) for part in _parts(tensors)] == [2, 1, 1]


def test_on_one_process_it_says_that_it_does_nothing(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="one process"):
        build(EfficientTrainer, EfficientTrainingArguments, tmp_path, communication={"gradients": "bf16"})


def test_the_hook_takes_hold_after_the_share_of_steps_that_is_asked_for() -> None:
    stock = DistributedDataParallelKwargs(find_unused_parameters=True)
    made = Communication(gradients="power_sgd", rank=3, start=0.2).handler(stock, 100)
    assert made.comm_hook == DDPCommunicationHookType.POWER_SGD
    option = made.comm_state_option
    assert (option["matrix_approximation_rank"], option["start_powerSGD_iter"]) == (3, 20)
    assert made.find_unused_parameters
    assert Communication(gradients="power_sgd").handler(None, 5).comm_state_option["start_powerSGD_iter"] == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gradient": "bf16"}, "did you mean 'gradients'"),
        ({"gradients": "int8"}, "'exact', 'fp16', 'bf16' or 'power_sgd'"),
        ({"local_steps": 0}, "local_steps must be at least 1, got 0"),
        ({"start": 2}, "start must be from 0 to 1, got 2"),
        ({"local_steps": 4, "gradients": "bf16"}, "no gradients are sent"),
        ("bf16", "must be a mapping"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_arguments_are_made(given: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="communication") as caught:
        EfficientTrainingArguments(str(tmp_path), communication=given, report_to="none", use_cpu=True)
    assert told in str(caught.value)


def test_settings_round_trip(tmp_path: Path) -> None:
    given = {"gradients": "power_sgd", "rank": 2}
    args = EfficientTrainingArguments(str(tmp_path), communication=given, report_to="none", use_cpu=True)
    again = EfficientTrainingArguments(**{**args.to_dict(), "output_dir": str(tmp_path)})
    assert again.communication == given
