"""Encoders compute on tokens alone: padding is left out between the embeddings and the head."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_efficient.blocks import layer_stacks, layers_of
from hf_efficient.capture import depths
from hf_efficient.errors import ConfigError, NoEffectWarning
from hf_efficient.functional.attention import implementation_of, switch_attention
from hf_efficient.functional.batching import random_padding
from hf_efficient.functional.examples import counted_outputs, positions
from hf_efficient.functional.packing import NAME, PackedLayers, register
from hf_efficient.optimization import Context, Optimization, Order
from hf_efficient.proposal import Observed, Proposal
from hf_efficient.timing import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Number type of the weights -> by how much of the largest logit packed and padded batches may differ."""


@dataclass(eq=False, kw_only=True)
class Packing(Optimization):
    """Put the tokens of a batch side by side, without padding, while the encoder's layers compute.

    Attention stays within each example. Embeddings, with the positions that they count, and the head see padded
    batches as ever, so pooling, labels and losses are the same; gradients are, but for rounding. Known as unpadding
    or padding-free training (Zeng et al. 2022, arXiv 2208.08124, section 3.1; ModernBERT: Warner et al. 2024, arXiv
    2412.13663). On a GPU from Ampere on, in 16 bits and without dropout of attention, a kernel for variable lengths
    computes attention; elsewhere attention alone is padded.
    """

    name = "packing"
    order = Order.PRECISION
    conflicts = frozenset({"attention", "compile"})  # how many tokens a batch has is no shape that can be traced

    def __post_init__(self) -> None:
        self._packed: PackedLayers | None = None
        self.reset()

    def reset(self) -> None:
        self._detach()
        self._model: Any = None
        self._able = False
        self._tokens = self._positions = 0

    @classmethod
    def proposals(cls, observed: Observed) -> Iterable[Proposal]:
        lengths, args = observed.lengths, observed.args
        if lengths is not None and getattr(observed.model, "_supports_attention_backend", False):
            # That of random batches is known for all of them; what was seen is less where others form them
            padding = min(observed.padding, random_padding(lengths, args.train_batch_size, args.seed))
            yield Proposal(gain=padding * observed.computing)

    def check(self, context: Context) -> None:
        if context.args.n_gpu > 1:
            raise ConfigError(
                "packing needs a process for each GPU, and one process has several here; start with accelerate launch"
            )
        if context.model is not None:
            self._require_encoder(context.model)

    def prepare_model(self, model: nn.Module, context: Context) -> nn.Module:
        self._detach()  # a dense phase has packed it
        self._require_encoder(model)
        batches = context.calibration(1)
        mask = positions(batches[0]) if batches else None
        self._able = mask is not None
        if mask is None:
            warnings.warn("packing: batches have no attention mask, so no padding", NoEffectWarning, 2)
        else:
            self._compare(model, {name: value for name, value in batches[0].items() if name != "labels"}, mask)
        return model

    def _require_encoder(self, model: Any) -> None:
        family = model.config.model_type
        if len(depths(model, self.name, "drop packing")) != 1 or getattr(model.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"packing serves models that are one stack of equal layers, and '{family}' is not; drop packing"
            )

    @torch.no_grad()
    def _compare(self, model: Any, batch: Mapping[str, Any], mask: torch.Tensor) -> None:
        """Refuse a model that computes otherwise on packed batches."""
        if mask.all() and mask.shape[1] > 1:
            mask = mask.clone()
            mask[0, -1] = False
        given = {**batch, "attention_mask": mask.to(batch["attention_mask"].dtype)}
        with evaluating(model):
            wanted = self._outputs(model, given)
            try:
                self._attach(model)
                found = self._outputs(model, given)
            except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
                family = model.config.model_type
                raise ConfigError(f"packing does not work with this '{family}' model: {error}; drop packing") from error
            finally:
                self._detach()
        allowed = ROUNDING.get(wanted.dtype, 1e-3) * float(wanted.abs().max())
        if not float((wanted - found).abs().max()) <= allowed:
            raise ConfigError(
                f"packing changes what this '{model.config.model_type}' model computes, so its layers mix positions by "
                "more than attention; drop packing"
            )

    @staticmethod
    def _outputs(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        outputs = model(**batch)
        logits = next(value for value in outputs.to_tuple() if isinstance(value, torch.Tensor))
        return logits[counted_outputs(batch, logits)] if logits.dim() > 1 else logits

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self._able:
            self._attach(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._detach()

    def _attach(self, model: "PreTrainedModel") -> None:
        register()
        before = implementation_of(model)
        asked = "packing, which needs a model whose code lets attention be exchanged"
        switch_attention(model, NAME, asked, "drop packing")
        (stack,) = layer_stacks(model)
        self._model, self._before = model, before
        self._packed = PackedLayers(layers_of(model, stack))

    def _detach(self) -> None:
        if self._packed is not None:
            self._packed.remove()
            self._model.set_attn_implementation(self._before)
            self._tokens += self._packed.tokens
            self._positions += self._packed.positions
        self._packed = self._model = None

    def describe(self) -> dict[str, Any]:
        if not self._positions:
            return {}
        return {"padding_left_out": 1 - self._tokens / self._positions}
