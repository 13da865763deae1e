"""Layers on packed batches: what they put out, what they learn, and who sees padding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.functional.packing import NAME, Layout, PackedLayers, packed_attention, padded, register

LENGTHS, LONGEST, VOCABULARY = (12, 3, 9, 5), 12, 60
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
}
SPECIAL: dict[str, Any] = {f"{name}_token_id": index for index, name in enumerate(["pad", "bos", "eos", "cls", "sep"])}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SIZES),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=16),
    "roberta": lambda: RobertaConfig(**SIZES),  # positions begin after that of padding
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=VOCABULARY, max_position_embeddings=16
    ),
    "modernbert": lambda: ModernBertConfig(**SIZES, **SPECIAL, local_attention=4, global_attn_every_n_layers=2),
}
HEADS = {"texts": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}


def batch_for(config: Any, side: str = "right", lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    place = torch.arange(LONGEST)
    mask = place < torch.tensor(lengths)[:, None]
    mask = mask if side == "right" else mask.flip(1)
    tokens = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
    return {"input_ids": tokens.where(mask, config.pad_token_id), "attention_mask": mask.long()}


def model_of(family: str, head: str = "texts", **changes: Any) -> Any:
    set_seed(0)
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    return HEADS[head].from_config(config)


@contextmanager
def packing(model: Any) -> Iterator[PackedLayers]:
    register()
    model.set_attn_implementation(NAME)
    (stack,) = layer_stacks(model)
    made = PackedLayers(layers_of(model, stack))
    try:
        yield made
    finally:
        made.remove()
        model.set_attn_implementation("sdpa")


def learned(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits at tokens, and gradients of a loss that all of them take part in."""
    model.zero_grad()
    logits = model(**batch).logits
    logits = logits[batch["attention_mask"].bool()] if logits.dim() == 3 else logits
    (logits * torch.arange(1, logits.numel() + 1).view_as(logits)).sum().backward()
    return logits.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", CONFIGS)
def test_outputs_and_gradients_are_those_of_padded_batches(family: str, head: str) -> None:
    model = model_of(family, head).eval()
    batch = batch_for(model.config)
    wanted, gradients = learned(model, batch)
    seen: list[torch.Size] = []
    layer = layers_of(model, layer_stacks(model)[0])[1]
    with packing(model):
        linear = next(module for module in layer.modules() if isinstance(module, nn.Linear))
        handle = linear.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
        found, ours = learned(model, batch)
        handle.remove()
    assert seen == [(1, sum(LENGTHS), 32)]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))
    again, _ = learned(model, batch)
    torch.testing.assert_close(again, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("side", ["left", "none"])
def test_padding_on_the_left_and_none(family: str, side: str) -> None:
    model = model_of(family, "tokens").eval()
    batch = batch_for(model.config, side, LENGTHS if side == "left" else (LONGEST,) * 3)
    wanted, _ = learned(model, batch)
    with packing(model) as packed:
        found, _ = learned(model, batch)
        assert (packed.layout is None) == (side == "none")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_activations_may_be_computed_again() -> None:
    model = model_of("bert").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = batch_for(model.config)
    _, wanted = learned(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with packing(model):
        _, found = learned(model, batch)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


def test_others_see_padded_hidden_states() -> None:
    model = model_of("bert").eval()
    batch, seen = batch_for(model.config), []
    layers = layers_of(model, layer_stacks(model)[0])
    query = layers[1].get_submodule("attention.self.query")
    for module, layer in ((layers[0], layers[0]), (query, layers[1])):
        module.register_forward_hook(lambda module, given, out, layer=layer: seen.append(padded(layer, out)))
    model(**batch)
    with packing(model):
        model(**batch)
    counted = batch["attention_mask"].bool()
    for plain, ours in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(ours[counted], plain[counted], rtol=1e-4, atol=1e-5)
        assert not ours[~counted].any()


def test_tokens_and_positions_of_training_are_counted() -> None:
    model = model_of("distilbert")
    batch = batch_for(model.config)
    with packing(model) as packed:
        model.eval()(**batch)
        model.train()(**batch)
        assert (packed.tokens, packed.positions) == (sum(LENGTHS), len(LENGTHS) * LONGEST)


def test_packing_and_unpacking_invert_each_other() -> None:
    mask = torch.tensor([[True, True, False], [False, True, False]])
    layout = Layout(mask, mask.flatten().nonzero()[:, 0])
    values = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2).requires_grad_()
    packed = layout.pack(values)
    assert packed.tolist() == [[0, 1], [2, 3], [8, 9]]
    assert layout.unpack(packed).tolist() == (values * mask[..., None]).tolist()
    assert torch.autograd.gradcheck(layout.pack, values)
    assert torch.autograd.gradcheck(layout.unpack, packed.detach().requires_grad_())


def test_attention_that_it_cannot_compute() -> None:
    values = torch.zeros(1, 1, 2, 4)
    causal = nn.Module()
    causal.is_causal = True  # type: ignore[assignment]
    with pytest.raises(NotImplementedError, match="before it alone"):
        packed_attention(causal, values, values, values, None)
    with pytest.raises(NotImplementedError, match="biased by distances"):
        packed_attention(nn.Module(), values, values, values, None, position_bias=values)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_kernel_for_variable_lengths_agrees(family: str) -> None:
    changes = {} if family == "modernbert" else {"attention_probs_dropout_prob": 0.0}
    model = model_of(family, "tokens", **changes).eval().to("cuda", torch.bfloat16)
    batch = {name: value.cuda() for name, value in batch_for(model.config).items()}
    counted = batch["attention_mask"].bool()
    with torch.no_grad():
        wanted = model(**batch).logits[counted]
        with packing(model):
            found = model(**batch).logits[counted]
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
