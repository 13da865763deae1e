"""Few values: found, tied and packed."""

import pytest
import torch

from hf_efficient.functional.cluster import BITS, Tie, codebook_of, kmeans, pack, packed_bytes, unpack


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 63, 64, 1001])
def test_packing_is_exact(bits: int, count: int) -> None:
    index = torch.randint(2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    packed = pack(index, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), index)
    assert packed_bytes(count, bits) == len(packed) + 4 * 2**bits


def test_first_index_is_in_the_lowest_bits() -> None:
    """What is on disk must mean the same in every version."""
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2).tolist() == [0b00111001, 0b10]


@pytest.mark.parametrize("bits", BITS)
def test_kmeans_is_better_than_even_steps(bits: int) -> None:
    values = normal(64, 65)
    codebook, index = kmeans(values, 2**bits)
    assert index.shape == values.shape
    assert torch.equal(codebook, codebook.sort().values)
    found = codebook[index.long()]
    assert (values - found).abs().le((values[..., None] - codebook).abs().amin(-1) + 1e-6).all(), "the nearest one"
    step = (values.max() - values.min()) / (2**bits - 1)
    even = ((values - values.min()) / step).round() * step + values.min()
    assert (values - found).square().mean() < 0.8 * (values - even).square().mean()
    assert torch.equal(index, kmeans(values.clone(), 2**bits)[1])


def test_error_of_a_normal_distribution_is_that_of_the_best_sixteen_numbers() -> None:
    """Max 1960, Quantizing for minimum distortion: 0.009497 for a unit normal."""
    values = normal(200_000)
    codebook, index = kmeans(values, 16)
    assert (values - codebook[index.long()]).square().mean() == pytest.approx(0.0095, rel=0.02)


def test_few_values_are_kept_exactly() -> None:
    values = torch.tensor([[0.5, -1.0, 0.5], [2.0, 2.0, 0.25]])
    codebook, index = kmeans(values, 16)
    assert torch.equal(codebook[index.long()], values)
    assert torch.equal(kmeans(torch.ones(5), 4)[0], torch.ones(4))


def test_many_zeros_stay_zero() -> None:
    values = normal(1000)
    values[:400] = 0
    codebook, index = kmeans(values, 4)
    assert codebook[index.long()].eq(0).sum() == 400
    assert codebook[0] == 0
    assert torch.equal(kmeans(torch.zeros(7), 4)[0], torch.zeros(4))


def test_means_are_those_of_the_clusters() -> None:
    tie = Tie(torch.tensor([[0, 1, 1], [2, 0, 1]], dtype=torch.uint8), 4)
    found = tie.means(torch.tensor([[1.0, 2.0, 4.0], [5.0, 3.0, 0.0]]))
    assert found.tolist() == [[2.0, 2.0, 2.0], [5.0, 2.0, 2.0]]
    assert torch.equal(tie.means(found), found)


def test_means_of_many_equal_numbers_are_that_number() -> None:
    """Else weights would drift away by rounding, in every step."""
    tie = Tie(torch.zeros(1_000_000, dtype=torch.uint8), 2)
    values = torch.full((1_000_000,), 0.1)
    assert torch.equal(tie.means(values), values)


@pytest.mark.parametrize("bits", BITS)
def test_codebook_is_exact(bits: int) -> None:
    values = normal(2**bits)[torch.randint(2**bits, (33, 7), generator=torch.Generator().manual_seed(0))]
    found = codebook_of(values, bits)
    assert found is not None
    codebook, packed = found
    assert len(codebook) == 2**bits
    assert torch.equal(codebook[unpack(packed, bits, values.numel()).long()].view_as(values), values)
    assert codebook_of(torch.arange(2.0**bits + 1), bits) is None
