"""Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300) by TRL, which this imports.

Completions of a prompt are sampled from the model, and what makes one better than the others is reinforced.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from trl import GRPOConfig, GRPOTrainer

from hf_efficient.arguments import EfficientFields
from hf_efficient.errors import ConfigError
from hf_efficient.tasks.sampling import seeded
from hf_efficient.trainer import efficient

FITTING = ("activation_checkpointing", "optimizer", "precision")
"""Optimizations for which it does not matter that batches are made by the model while it trains; `compile` fails in the
head that TRL (1.16) puts on the model."""

PADDING = -100
"""In place of tokens that a completion has fewer than another: as a Trainer pads what it joins."""


@dataclass
class GRPOArguments(EfficientFields, GRPOConfig):
    """`trl.GRPOConfig` plus the fields of `EfficientTrainingArguments`.

    What is an optimization here is off unless it is listed: TRL would train in bf16 and checkpoint activations.
    """

    bf16: bool = False
    gradient_checkpointing: bool | None = None

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "optimizations"]

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.optimizations or {}
        unfit = [name for name, settings in given.items() if name not in FITTING and settings is not False]
        if unfit:
            raise ConfigError(
                f"optimizations.{unfit[0]} does not fit reinforcement learning, which makes its batches and targets "
                f"while it trains, by TRL's own loss; drop it. Allowed: {', '.join(FITTING)}"
            )


class RewardTrainer(efficient(GRPOTrainer)):  # type: ignore[misc]
    """GRPO, judged by the rewards of completions that are drawn from the model's own distribution, the same each time.

    That is what it maximises; the most probable completion of a new model repeats the prompt's last token. Evaluation
    takes each prompt once, in the data's order. Predictions (prompts, tokens): ids of the completions, from
    the end on `PADDING`; label_ids (prompts,): the reward that each was given.

    Attributes:
        collate_prompts: joins rows into a batch of prompts, padded on the left.
        most_tokens: of a completion.
    """

    collate_prompts: Callable[[list[Mapping[str, Any]]], dict[str, torch.Tensor]]
    most_tokens: int

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
        return SequentialSampler(eval_dataset)

    def prediction_step(
        self,
        model: Any,
        inputs: list[Mapping[str, Any]],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """No loss: advantages of single completions are nothing."""
        ids = [self._completion(row) for row in self._generated(inputs).tolist()]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        rewards = self.reward_funcs[0].of(inputs, texts, ids)
        padded = [row + [PADDING] * (self.most_tokens - len(row)) for row in ids]
        device = self.args.device
        return None, torch.tensor(padded, device=device), torch.tensor(rewards, device=device)

    @torch.no_grad()
    def _generated(self, rows: list[Mapping[str, Any]]) -> torch.Tensor:
        """Ids that follow each prompt, shape (prompts, tokens); chance depends on nothing but the prompts."""
        device = self.args.device
        prompts = {name: value.to(device) for name, value in self.collate_prompts(rows).items()}
        with seeded(device, zlib.crc32("\n".join(row["prompt"] for row in rows).encode())):
            ids = self.model.generate(
                **prompts, max_new_tokens=self.most_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                eos_token_id=self.eos_token_ids, pad_token_id=self.processing_class.pad_token_id,
            )  # fmt: skip
        return ids[:, prompts["input_ids"].shape[1] :]

    def _completion(self, ids: list[int]) -> list[int]:
        """``ids`` up to the first that ends a text, that one included."""
        end = next((index for index, one in enumerate(ids) if one in self.eos_token_ids), len(ids) - 1)
        return ids[: end + 1]
