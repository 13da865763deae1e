"""An example stays the same however it was padded."""

import torch

from hf_efficient.functional.examples import counted_outputs, decoder_positions, example_keys, join, positions, split

BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
}


def keys(batch: dict[str, torch.Tensor]) -> list[str]:
    return example_keys(batch, positions(batch), decoder_positions(batch))


def test_keys_ignore_padding_on_either_side() -> None:
    short = {name: value[1:, :2] for name, value in BATCH.items()}
    left = {name: value.flip(1) for name, value in short.items()}
    left = {name: torch.nn.functional.pad(value.flip(1), (3, 0)) for name, value in left.items()}
    assert keys(BATCH)[1:] == keys(short) == keys(left)
    assert keys(BATCH)[0] != keys(BATCH)[1]


def test_keys_tell_values_names_and_types_apart() -> None:
    image = {"pixel_values": torch.zeros(1, 3, 2, 2)}
    others = [
        {"pixel_values": torch.zeros(1, 3, 2, 2).index_fill(1, torch.tensor(0), 1e-7)},
        {"other": torch.zeros(1, 3, 2, 2)},
        {"pixel_values": torch.zeros(1, 3, 4)},
        {"pixel_values": torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)},
    ]
    assert len({keys(one)[0] for one in (image, *others)}) == 5


def test_labels_of_a_decoder_are_stripped() -> None:
    one = {**BATCH, "labels": torch.tensor([[3, -100, 4, -100], [3, -100, -100, -100]])}
    assert decoder_positions(one).tolist() == [[True, True, True, False], [True, False, False, False]]
    wider = {**BATCH, "labels": torch.nn.functional.pad(one["labels"], (0, 2), value=-100)}
    assert keys(one) == keys(wider)


def test_split_and_join_are_inverse() -> None:
    mask = BATCH["attention_mask"].bool()
    value = torch.randn(2, 4, 3)
    rows = split(value, mask)
    assert [len(row) for row in rows] == [3, 2]
    assert torch.equal(join(rows, mask), value * mask[..., None])
    assert torch.equal(join(split(value, None), None), value)


def test_counted_outputs() -> None:
    labels = torch.tensor([[1, 2, -100, -100], [3, -100, -100, -100]])
    logits = torch.zeros(2, 4, 5)
    assert torch.equal(counted_outputs({"labels": labels}, logits), labels != -100)
    assert counted_outputs({"labels": labels}, logits, shifted=True).sum() == 1
    assert torch.equal(counted_outputs(BATCH, logits), BATCH["attention_mask"].bool())
    assert counted_outputs({"labels": torch.tensor([0, -100])}, torch.zeros(2, 5)).tolist() == [True, False]
    assert counted_outputs({"labels": torch.rand(2, 5)}, torch.zeros(2, 5)).tolist() == [True, True]
