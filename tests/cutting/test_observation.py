"""What is seen of a model is what it computes."""

import copy
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

from hf_efficient.blocks import layer_stacks, layers_of, output_of, sublayers_of
from hf_efficient.cutting.observation import (
    divergence,
    key_of,
    logits_on,
    moments,
    moments_towards,
    rows_that_count,
    streams,
    unit_gradients,
)


def test_divergence_is_zero_from_itself_and_grows(trained: Any, batches: Any) -> None:
    reference = logits_on(trained, batches)
    assert divergence(trained, batches, reference) == pytest.approx(0, abs=1e-6)
    worse, last = copy.deepcopy(trained), 0.0
    for _ in range(3):
        worse.classifier.weight.data *= 0.5
        found = divergence(worse, batches, reference)
        assert found > last
        last = found


def test_divergence_is_the_mean_kullback_leibler_of_rows(trained: Any, batches: Any) -> None:
    other = copy.deepcopy(trained)
    other.classifier.weight.data *= 0.5
    p, q = (torch.cat(logits_on(model, batches)).softmax(-1) for model in (trained, other))
    expected = (p * (p / q).log()).sum(-1).mean().item()
    assert divergence(other, batches, logits_on(trained, batches)) == pytest.approx(expected, rel=1e-4)


def test_outputs_that_are_no_class_scores_are_numbers() -> None:
    """Labels that are floats tell; with one for each output, it is a yes or no."""
    outputs = torch.randn(4, 3)
    assert rows_that_count(outputs, {"labels": torch.arange(4.0)}).shape == (12, 1)
    assert rows_that_count(outputs[:, :1], {"labels": torch.ones(4, 1)}).shape == (4, 1)
    assert rows_that_count(outputs, {"labels": torch.ones(4, 3)}).shape == (12, 2)
    assert rows_that_count(outputs, {"labels": torch.ones(4, dtype=torch.long)}).shape == (4, 3)


def test_moments_are_those_of_the_projection(trained: Any, batches: Any) -> None:
    (stack,) = layer_stacks(trained)
    output = layers_of(trained, stack)[1].output.dense
    seen: list[Any] = []
    handle = output.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        for batch in batches:
            trained(**batch)
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    x, t = (torch.cat([pair[side][mask] for pair, mask in zip(seen, masks, strict=True)]).double() for side in (0, 1))
    found = moments(trained, batches)[stack.path, 1, "ffn"]
    assert found.count == len(x)
    torch.testing.assert_close(found.xx, (x - x.mean(0)).T @ (x - x.mean(0)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.xt, (x - x.mean(0)).T @ (t - t.mean(0)), rtol=1e-4, atol=1e-4)


def test_an_uncut_sublayer_is_wanted_as_it_is(trained: Any, batches: Any) -> None:
    """Towards its own streams, a projection's target is its own output."""
    wanted = streams(trained, batches)
    own = moments(trained, batches)
    for stack, index, sublayer in sublayers_of(trained):
        key = key_of(stack, index, sublayer)
        found = moments_towards(trained, stack, index, sublayer, batches, wanted[key])
        torch.testing.assert_close(found.xt, own[key].xt, rtol=1e-4, atol=1e-4)


def test_unit_gradients_are_those_of_scaling_a_unit(trained: Any, batches: Any) -> None:
    sizes = {key_of(*place): {"attention": 4, "ffn": 1}[place[2].kind] for place in sublayers_of(trained)}
    found = unit_gradients(trained, batches[:1], sizes)
    (stack,) = layer_stacks(trained)
    layer = layers_of(trained, stack)[2]
    sublayer = stack.sublayers[0]
    key, step, losses = key_of(stack, 2, sublayer), 1e-3, []
    batch = {name: value[:1] for name, value in batches[0].items()}
    for sign in (1, -1):
        changed = copy.deepcopy(trained)
        output = output_of(layers_of(changed, stack)[2], sublayer)
        output.weight.data[:, 4:8] *= 1 + sign * step
        with torch.no_grad():
            losses.append(changed(**batch).loss.double().item())
    assert layer.training is False
    slope = (losses[0] - losses[1]) / (2 * step)
    assert found[key][0][0, 1].item() == pytest.approx(slope, rel=0.05, abs=1e-4)


def test_what_is_wanted_is_seen_through_a_layer_scale() -> None:
    """Where a projection is to put out twice as much, its stream grows by less than that."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    model = Dinov2ForImageClassification(Dinov2Config(**sizes, layerscale_value=0.25)).eval()
    images = [{"pixel_values": torch.rand(4, 3, 8, 8)}]
    (stack,) = layer_stacks(model)
    for sublayer in stack.sublayers:
        double = copy.deepcopy(model)
        for parameter in output_of(layers_of(double, stack)[0], sublayer).parameters():
            parameter.data *= 2
        key = key_of(stack, 0, sublayer)
        found = moments_towards(model, stack, 0, sublayer, images, streams(double, images)[key])
        torch.testing.assert_close(found.xt, 2 * moments(model, images)[key].xt, rtol=1e-3, atol=1e-4)
