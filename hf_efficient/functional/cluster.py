"""Tensors that hold few values: found by k-means, trained as one number each, and stored as indices into a codebook."""

import math
from typing import Self

import torch

BITS = (2, 4, 8)
"""Of an index; a byte holds a whole number of these."""
ITERATIONS = 300
"""Of Lloyd's algorithm at most; on sorted numbers each costs next to nothing."""


def kmeans(values: torch.Tensor, clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``clusters`` numbers nearest to ``values`` in square, by Lloyd's algorithm; deterministic.

    Zeros that are as many as a cluster has on average, as after pruning, stay zero: they have a cluster of their own.

    Returns:
        codebook, ascending but for that zero, which is the first, in the dtype of ``values``, shape (clusters,); and
        for each value the index of its cluster, uint8, in the shape of ``values``.
    """
    flat = values.detach().flatten()
    zeros = flat == 0
    if 0 < len(flat) <= clusters * int(zeros.sum()) < clusters * len(flat):
        codebook, index = torch.zeros(clusters).to(flat), torch.zeros_like(flat, dtype=torch.uint8)
        codebook[1:], others = kmeans(flat[~zeros], clusters - 1)
        index[~zeros] = others + 1
        return codebook, index.view(values.shape)
    ordered = flat.double().sort().values
    centroids = _lloyd(ordered, clusters)
    index = torch.bucketize(flat.double(), (centroids[1:] + centroids[:-1]) / 2)
    return centroids.to(values.dtype), index.to(torch.uint8).view(values.shape)


def _lloyd(ordered: torch.Tensor, clusters: int) -> torch.Tensor:
    """Centroids of ascending numbers, ascending, shape (clusters,)."""
    distinct = ordered.unique_consecutive()
    if len(distinct) <= clusters:
        return torch.cat([distinct, distinct[-1:].expand(clusters - len(distinct))])
    centroids = _start(distinct, clusters)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])  # (numbers + 1,)
    first, last = (torch.tensor([end], device=ordered.device) for end in (0, len(ordered)))
    for _ in range(ITERATIONS):
        ends = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        ends = torch.cat([first, ends, last])
        counts = ends.diff()
        found = torch.where(counts > 0, sums[ends].diff() / counts.clamp_min(1), centroids)
        if torch.equal(found, centroids):
            break
        centroids = found
    return centroids


def _start(ordered: torch.Tensor, clusters: int) -> torch.Tensor:
    """As dense as the cube root of the density of ``ordered``, which is best for many clusters (Panter & Dite 1951)."""
    grid = ordered[torch.linspace(0, len(ordered) - 1, min(len(ordered), 16 * clusters), dtype=torch.float64).long()]
    mass = torch.cat([grid.new_zeros(1), grid.diff().pow(2 / 3).cumsum(0)])  # gap * (1 / gap)^(1/3)
    wanted = (torch.arange(clusters).to(mass) + 0.5) / clusters * mass[-1]
    after = torch.searchsorted(mass, wanted).clamp_min(1)
    share = (wanted - mass[after - 1]) / (mass[after] - mass[after - 1])
    return torch.lerp(grid[after - 1], grid[after], share)


class Tie:
    """A tensor whose elements are one number within each cluster.

    Args:
        index: cluster of each element, uint8, in the tensor's shape.
    """

    def __init__(self, index: torch.Tensor, clusters: int):
        self.index, self.clusters = index, clusters
        self._flat = index.flatten().int()
        self._counts = torch.bincount(self._flat, minlength=clusters).clamp_min(1)

    @classmethod
    def of(cls, values: torch.Tensor, clusters: int) -> Self:
        """The clusters of ``values`` by `kmeans`."""
        return cls(kmeans(values, clusters)[1], clusters)

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` with the mean of its cluster in the place of each, in their dtype.

        Of a gradient, that is the one with respect to a codebook (Han et al. 2016, arXiv 1510.00149) in the units of
        single weights: learning rates stay what they were.
        """
        sums = torch.zeros(self.clusters, dtype=torch.float64, device=values.device)
        sums.index_add_(0, self._flat, values.flatten().double())  # so many of equal sign would be rounded off in fp32
        return (sums / self._counts).to(values.dtype)[self._flat].view_as(values)

    def to(self, device: torch.device) -> None:
        self.index, self._flat, self._counts = (each.to(device) for each in (self.index, self._flat, self._counts))


def codebook_of(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Codebook (2^bits,) and packed indices of ``values``, exact; None where they are more different numbers.

    A codebook with fewer numbers is filled up with its last.
    """
    found, index = values.flatten().unique(return_inverse=True)
    if len(found) > 2**bits:
        return None
    filling = found[-1:].expand(2**bits - len(found))
    return torch.cat([found, filling]), pack(index.to(torch.uint8), bits)


def pack(index: torch.Tensor, bits: int) -> torch.Tensor:
    """Indices below 2^bits as bytes, shape (ceil(numbers * bits / 8),): the first in the lowest bits of its byte.

    Args:
        index: uint8, shape (numbers,).
    """
    each = 8 // bits
    rows = torch.nn.functional.pad(index, (0, -len(index) % each)).view(-1, each)
    packed = torch.zeros_like(rows[:, 0])
    for position in range(each):
        packed |= rows[:, position] << (position * bits)
    return packed


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` indices of what `pack` gave, uint8, shape (count,)."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]


def packed_bytes(count: int, bits: int, itemsize: int = 4) -> int:
    """What ``count`` numbers take as indices, codebook included.

    Args:
        itemsize: bytes of a number in the codebook.
    """
    return math.ceil(count * bits / 8) + itemsize * 2**bits
