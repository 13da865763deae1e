"""Reinforcement learning: a causal language model that learns to say what is rewarded, by GRPO of TRL."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from pydantic import Field
from transformers import EvalPrediction, PreTrainedModel

from hf_efficient.data import DataSettings
from hf_efficient.errors import ConfigError, DataError, MissingDependencyError
from hf_efficient.pretrained import is_new
from hf_efficient.tasks.columns import TEXT, check_type
from hf_efficient.tasks.rewards import GIVEN, Reward, load_reward
from hf_efficient.tasks.rewards_picture import rewards_png
from hf_efficient.tasks.text import TextTask
from hf_efficient.tasks.text_generation import TextCollator
from hf_efficient.timing import GeneratingRuntime

PROMPT = "prompt"
"""Column of the prompts, as TRL has it."""

RESERVED = (*GIVEN, "completion", "environment", "environments", "image", "images")
"""Names that mean something else to TRL than a column for the reward."""


class FromTRL:
    """A class in `grpo.py`, looked up on use: without TRL the task can still be listed."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        try:
            import trl  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("reinforcement-learning", "trl", "trl") from error
        from hf_efficient.tasks import grpo

        return getattr(grpo, self.name)


class ReinforcementLearningData(DataSettings):
    """Column of a set of prompts; all others go to the reward."""

    prompt: str = "prompt"
    """Column of the text that the model goes on from."""

    reward: str
    """What a completion is worth: ``wanted_characters``, a toy, or a function of your own, ``module:function`` or
    ``path.py:function``, with TRL's signature: ``completions`` and ``**columns``, lists, to a list of numbers. Its code
    is run, where HF_EFFICIENT_TRUST_CODE=1 in the environment allows it."""

    max_prompt_length: int = Field(default=64, ge=1)
    """Prompts of more tokens are refused: cut, they would ask for something else."""

    max_completion_length: int = Field(default=64, ge=1)
    """No more tokens are generated."""

    def columns(self) -> list[str]:
        return [self.prompt]


class ReinforcementLearning(TextTask):
    """What a causal language model says to prompts, judged by a reward."""

    name = "reinforcement-learning"
    pipeline = "text-generation"
    auto_model = "AutoModelForCausalLM"
    main_metric = "reward"
    data_settings = ReinforcementLearningData
    trainer_class = FromTRL("RewardTrainer")  # type: ignore[assignment]
    arguments_class = FromTRL("GRPOArguments")  # type: ignore[assignment]

    settings: ReinforcementLearningData

    _is_new = False

    def __init__(self, settings: DataSettings):
        super().__init__(settings)
        self.reward: Reward = load_reward(self.settings.reward)

    def check(self, data: DatasetDict) -> None:
        column = self.settings.prompt
        for split, dataset in data.items():
            check_type(dataset, column, TEXT, f"data.{split}: column '{column}' must hold text")
            taken = {PROMPT, *RESERVED} - {column}
            for name in dataset.column_names:
                if name in taken:
                    raise DataError(f"data.{split}: TRL means something else by a column '{name}'; rename or drop it")
            self.reward.check([*set(dataset.column_names) - {column}], f"data.{split}")
        self.reward.try_on(self._renamed(data["train"])[0])
        super().check(data)

    def load_model(self, model: str, **kwargs: Any) -> PreTrainedModel:
        self._is_new = is_new(model)
        return super().load_model(model, **kwargs)

    def _check_length(self, limit: int | None, model: str) -> None:
        length = self.settings.max_prompt_length + self.settings.max_completion_length
        if limit and 0 < limit < length:
            raise ConfigError(
                f"data.max_prompt_length and data.max_completion_length come to {length}, but model '{model}' takes at "
                f"most {limit} tokens; lower either"
            )

    def encode(self, split: Dataset) -> Dataset:
        """``prompt``: text, as TRL takes it; and all other columns."""
        limit = self.settings.max_prompt_length
        for row, ids in enumerate(self._ids(split), 1):
            if len(ids) > limit:
                raise DataError(
                    f"row {row}: a prompt of {len(ids)} tokens, more than data.max_prompt_length={limit}; shorten it, "
                    "or raise that"
                )
        return self._renamed(split)

    def _renamed(self, split: Dataset) -> Dataset:
        column = self.settings.prompt
        return split if column == PROMPT else split.rename_column(column, PROMPT)

    def _ids(self, split: Dataset) -> list[list[int]]:
        return self.processor(list(split[self.settings.prompt]))["input_ids"]

    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Joins prompts, padded on the left."""
        return PromptCollator(self.processor)

    def arguments(self) -> dict[str, Any]:
        """Evaluation says one thing to each prompt, in larger batches, and comes before training, too."""
        return {
            "max_completion_length": self.settings.max_completion_length,
            "num_generations_eval": 1,
            "per_device_eval_batch_size": 32,
            "eval_on_start": True,
            "logging_strategy": "steps",
            "logging_steps": 0.04,  # of all steps
        }

    def trainer(self, **kwargs: Any) -> Any:
        """
        Raises:
            ConfigError: it is to stay near weights that are random.
        """
        if self._is_new and kwargs["args"].beta:
            raise ConfigError(
                f"beta={kwargs['args'].beta} keeps a model near what it was, and new weights were nothing; set "
                "beta=0, or train a stage before"
            )
        made = self.trainer_class(reward_funcs=self.reward, **kwargs)
        made.compute_metrics = self.compute_metrics
        made.collate_prompts, made.most_tokens = self.collator(), self.settings.max_completion_length
        return made

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Mean reward, and mean number of tokens of a completion, from what `RewardTrainer` predicts."""
        ids, rewards = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        return {"reward": float(rewards.mean(dtype=np.float64)), "completion_tokens": float((ids >= 0).sum(1).mean())}

    def baseline(self, data: DatasetDict, split: str) -> tuple[str, dict[str, float]]:
        """As many tokens as may be, drawn from all but the special ones alike."""
        rows = list(self._renamed(data[split]))
        tokens = np.setdiff1d(np.arange(len(self.processor)), self.processor.all_special_ids)
        shape = (len(rows), self.settings.max_completion_length)
        ids = np.random.default_rng(0).choice(tokens, shape)
        rewards = self.reward.of(rows, self._decoded(ids), ids.tolist())
        return "random tokens", self.compute_metrics(EvalPrediction(ids, np.array(rewards)))

    def details(self, prediction: EvalPrediction) -> dict[str, str | bytes]:
        """``rewards.jsonl``: completions and rewards, with the prompts where ``prediction.inputs`` has the rows."""
        rows: Any = prediction.inputs
        rewards = np.asarray(prediction.label_ids).tolist()
        prompts = [None] * len(rewards) if rows is None else rows[self.settings.prompt]
        said = self._decoded(np.asarray(prediction.predictions))
        lines = (
            json.dumps({"prompt": prompt, "completion": text, "reward": round(reward, 6)}, ensure_ascii=False)
            for prompt, text, reward in zip(prompts, said, rewards, strict=True)
        )
        return {"rewards.jsonl": "".join(f"{line}\n" for line in lines)}

    def training_details(self, history: dict[str, list[dict[str, float]]]) -> dict[str, str | bytes]:
        """``rewards.png``: mean rewards while each stage trained."""
        return {"rewards.png": rewards_png(history)}

    def _decoded(self, ids: np.ndarray) -> list[str]:
        """Texts of token ids (texts, length); what is below 0 is padding."""
        filled = np.where(ids < 0, self.processor.pad_token_id, ids)
        return self.processor.batch_decode(filled, skip_special_tokens=True)

    def raw(self, example: dict[str, Any]) -> str:
        """The prompt."""
        return example[self.settings.prompt]

    def preprocess(self, inputs: list[Any]) -> dict[str, Any]:
        """Prompts, tokenised and padded on the left."""
        return self.collator()([{PROMPT: text} for text in inputs])

    def requests(self, rows: Dataset) -> Dataset:
        """Prompts as token ids."""
        ids = self._ids(rows)
        return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})

    def runtime(self, model: PreTrainedModel) -> GeneratingRuntime:
        """Generates equally many tokens after each prompt, whatever the model would say."""
        tokens, padding = self.settings.max_completion_length, self.processor.pad_token_id
        return GeneratingRuntime(
            model, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=padding
        )


class PromptCollator:
    """Joins prompts, given as text or as token ids, into tensors (prompts, length), padded on the left."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if PROMPT in rows[0]:
            ids = self.tokenizer([row[PROMPT] for row in rows])["input_ids"]
            rows = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]
        return TextCollator(self.tokenizer.pad_token_id)(rows)
