"""What an optimization must have changed, one check each: from (trainer before training, trainer after)."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from hf_efficient.checkpoint import load_state
from hf_efficient.functional.memory import TensorBytes
from hf_efficient.functional.optimizer_state import adamw_state_bytes, optimizer_state_bytes
from hf_efficient.resumption import newest_whole
from tests.tiny import LAYERS, VOCABULARY


def train(one: Any, **options: Any) -> Any:
    set_seed(0)
    one.train(**options)
    return one


class OutputTypes(TrainerCallback):
    """Number types that the first attention projection puts out while the model trains."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.dtypes: set[torch.dtype] = set()
        layer = next(module for name, module in model.named_modules() if name.endswith(("query", "q_proj")))
        layer.register_forward_hook(self._note)

    def _note(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if module.training:
            self.dtypes.add(output.dtype)


def fewer_parameters(before: Any, after: Any) -> bool:
    saved = transformers.AutoConfig.from_pretrained(after.finished)
    kept = sum(parameter.numel() for parameter in after.model.parameters())
    return saved.num_hidden_layers == 2 and kept < sum(p.numel() for p in before.model.parameters())


def fewer_tokens(before: Any, after: Any) -> bool:
    saved = transformers.AutoConfig.from_pretrained(after.finished)
    rows = [one.model.get_input_embeddings().weight.shape[0] for one in (before, after)]
    return rows == [VOCABULARY, 32] and saved.vocab_size == 32


def half_zeros(before: Any, after: Any) -> bool:
    """Half of the weights of linear layers in the saved model's blocks are zero, none were before."""

    def shares(model: Any) -> list[float]:
        inside = [module for blocks in model.modules() if isinstance(blocks, torch.nn.ModuleList) for module in blocks]
        layers = [layer for block in inside for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        return [(layer.weight == 0).float().mean().item() for layer in layers]

    saved = type(after.model).from_pretrained(after.finished)
    return set(shares(before.model)) == {0.0} and set(shares(saved)) == {0.5}


def few_weights(before: Any, after: Any) -> bool:
    """Groups of eight weights of every linear layer hold at most 15 values each, those of a plain training do not."""

    def on_grid(model: Any) -> bool:
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        groups = torch.cat([layer.weight.detach().reshape(-1, 8) for layer in layers])
        steps = groups / (groups.abs().amax(1, keepdim=True) / 7).clamp_min(1e-12)
        return bool((steps - steps.round()).abs().max() < 1e-3)

    return on_grid(after.model) and not on_grid(before.model)


def thin_difference(before: Any, after: Any) -> bool:
    """Weights of an attention projection moved by a matrix of rank 2, embeddings not at all."""
    name = next(name for name in before.model.state_dict() if name.endswith(("query.weight", "q_proj.weight")))
    table = next(name for name in before.model.state_dict() if "embeddings" in name)
    old, new = before.model.state_dict(), after.model.state_dict()
    moved = torch.linalg.matrix_rank(new[name] - old[name], rtol=1e-3)
    return moved.item() == 2 and torch.equal(new[table], old[table])


def fused_weights(before: Any, after: Any) -> bool:
    """A quarter of the features is gone; every matrix is stored in 4 bits, but for those too small to gain by it."""
    saved = load_file(after.finished / "model.safetensors").values()
    dense, packed = ([t.numel() for t in saved if (t.dtype == torch.uint8) == small] for small in (False, True))
    kept, all_weights = (sum(p.numel() for p in one.model.parameters()) for one in (after, before))
    features = sum(m.out_features for n, m in after.model.named_modules() if n.endswith(("intermediate.dense", "fc1")))
    return kept < all_weights and features == 72 and 2 * sum(packed) > 0.7 * kept and sum(dense) < 0.3 * kept


def averaged_weights(before: Any, after: Any) -> bool:
    """A checkpoint's model is not what its training goes on with, and not far from it."""
    folder = newest_whole(after.args.output_dir)
    kept = load_state(folder)["optimizations"]["weight_averaging"]
    apart, moved = (
        sum((one - other.get_parameter(name)).detach().square().sum().item() for name, one in kept["others"].items())
        for other in (type(after.model).from_pretrained(folder), before.model)
    )
    return kept["shown"] and 0 < apart < moved


def another_kernel(before: Any, after: Any) -> bool:
    """The training was told to, and what is saved computes as before."""
    saved = type(after.model).from_pretrained(after.finished)
    told = after.optimizations[0].describe()
    kernels = {one.config._attn_implementation for one in (before.model, after.model, saved)}
    return told == {"implementation": "eager", "before": "sdpa"} and kernels == {"sdpa"}


def padding_left_out(before: Any, after: Any) -> bool:
    """While it trained; afterwards attention is as it was."""
    left_out = after.optimizations[0].describe()["padding_left_out"]
    return 0.1 < left_out < 0.5 and after.model.config._attn_implementation == "sdpa"


def a_worker(before: Any, after: Any) -> bool:
    return [one.get_train_dataloader().num_workers for one in (before, after)] == [0, 1]


def pixels_side_by_side(before: Any, after: Any) -> bool:
    """While it trained: its moments have the layout of the weights; the finished weights lie as usual."""
    saved = torch.load(Path(after.args.output_dir) / "checkpoint-12" / "optimizer.pt", weights_only=True)
    moments = [one["exp_avg"] for one in saved["state"].values() if one["exp_avg"].dim() == 4]
    weights = [one for one in after.model.parameters() if one.dim() == 4]
    last = {"memory_format": torch.channels_last}
    return bool(moments) and all(m.is_contiguous(**last) for m in moments) and all(w.is_contiguous() for w in weights)


def smaller_images_first(before: Any, after: Any) -> bool:
    """In eleven of twelve steps, a quarter of the pixels; what is saved takes whole images."""
    told, saved = after.optimizations[0].describe(), type(after.model).from_pretrained(after.finished)
    examples = {size: count for size, (_, count) in after.accounts.batches.items()}
    sides = {"first_sides": [4, 4], "whole_sides": [8, 8], "pixels_spared": round(0.75 * 11 / 12, 4)}
    return told == sides and examples == {(4, 4): 88, (8, 8): 8} and saved.config.image_size == 8


def other_masks(before: Any, after: Any) -> bool:
    """Other weights than without it."""
    own = after.optimizations[0]
    stock, ours = (dict(one.model.state_dict()) for one in (train(before), after))
    return own.describe() == {"rates": [0.1]} and any(not stock[name].equal(value) for name, value in ours.items())


def two_threads(before: Any, after: Any) -> bool:
    return after.optimizations[0].describe() == {"count": 2, "before": 1} and torch.get_num_threads() == 1


def computes_in_bf16(before: Any, after: Any) -> bool:
    kinds = [c.dtypes for c in after.callback_handler.callbacks if isinstance(c, OutputTypes)]
    return kinds == [{torch.bfloat16}]


def small_optimizer_state(before: Any, after: Any) -> bool:
    """Outside embeddings at most 0.4 of what 32-bit AdamW saves, inside exactly as much."""
    saved = torch.load(Path(after.args.output_dir) / "checkpoint-12" / "optimizer.pt", weights_only=True)
    ours = optimizer_state_bytes(after.optimizer.optimizer, after.model, saved)
    adamw = adamw_state_bytes(after.model)
    return ours["other"] <= 0.4 * adamw["other"] and ours["embeddings"] == adamw["embeddings"]


def compiles(before: Any, after: Any) -> bool:
    return after.optimizations[0].describe()["graphs"] > 0


def less_memory(before: Any, after: Any) -> bool:
    """At most 0.75 of the bytes alive at once in a forward and backward pass of the first batch."""
    peaks = []
    for one in (before, after):
        batch = one.data_collator([one.train_dataset[index] for index in range(8)])
        with TensorBytes() as counted:
            one.model.train()(**batch).loss.backward()
        peaks.append(counted.peak)
    return peaks[1] <= 0.75 * peaks[0]


def settled_layers(before: Any, after: Any) -> bool:
    """The first two of three layers, and what comes before them, moved in the first four of twelve steps alone."""

    def moved(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
        names = {name for name, weight in old.items() if not torch.equal(weight, new[name])}
        return {match[0][-1] for match in (re.search(r"embeddings|layers?\.\d", name) for name in names) if match}

    folders = Path(after.args.output_dir) / "checkpoint-4", after.finished
    early, late = (type(after.model).from_pretrained(folder).state_dict() for folder in folders)
    return moved(before.model.state_dict(), early) == {*"s012"} and moved(early, late) == {"2"}


def fewer_steps(before: Any, after: Any) -> bool:
    """Of two passes of six steps the second has four: 18 of 48 examples are left out."""
    return after.state.global_step == 10 and after.optimizations[0].describe()["examples_spared"] == 18 / 96


def fewer_examples(before: Any, after: Any) -> bool:
    """Of 48 texts 14 have a quarter of their tokens in common with one of the same class: two steps fewer."""
    return after.state.global_step == 10 and after.optimizations[0].describe()["near_duplicates"] == 14


def less_padding(before: Any, after: Any) -> bool:
    masks = [batch["attention_mask"] for batch in before.get_train_dataloader()]
    random = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return after.optimizations[0].describe()["padding_share"] < 0.6 * random


def closer_to_the_teacher(before: Any, after: Any) -> bool:
    """What the model says is nearer to its teacher, the dense model, than after the same training on labels alone."""
    dense = type(before.model).from_pretrained(Path(after.args.output_dir) / "dense" / "final").eval()
    before.model.load_state_dict(dense.state_dict())
    train(before)
    batch = before.data_collator([before.eval_dataset[index] for index in range(len(before.eval_dataset))])
    with torch.no_grad():
        taught, *said = (one.eval()(**batch).logits.log_softmax(-1) for one in (dense, before.model, after.model))
    counted = batch["labels"] != -100
    alone, ours = (
        torch.nn.functional.kl_div(one[counted], taught[counted], log_target=True, reduction="batchmean")
        for one in said
    )
    return bool(ours < 0.8 * alone)


def rates_by_layer(before: Any, after: Any) -> bool:
    """The saved optimizer has a rate for each layer, for what is below them and for the head; logs tell the usual."""
    saved = torch.load(Path(after.args.output_dir) / "checkpoint-12" / "optimizer.pt", weights_only=True)
    factors = {round(group["initial_lr"] / after.args.learning_rate, 6) for group in saved["param_groups"]}
    (first,) = (entry["learning_rate"] for entry in after.state.log_history if entry["step"] == 1)
    return factors == {10, *(round(0.8**depth, 6) for depth in range(LAYERS + 1))} and first <= after.args.learning_rate


def unseen_rows_rest(before: Any, after: Any) -> bool:
    """Token embeddings that no example has are as they were, and have no moments; all that an example has moved."""
    seen = torch.cat([example["input_ids"] for example in after.train_dataset]).unique()
    old, new = (one.model.get_input_embeddings().weight for one in (before, after))
    saved = torch.load(Path(after.args.output_dir) / "checkpoint-12" / "optimizer.pt", weights_only=True)
    tables = [one["slots"] >= 0 for one in saved["state"].values() if "slots" in one]
    moved = (old != new).any(1).nonzero().flatten()
    (kept,) = [table.nonzero().flatten() for table in tables if len(table) == len(old)]
    return torch.equal(moved, seen) and torch.equal(kept, seen)
