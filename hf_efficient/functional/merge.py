"""Units of a projection that say nearly the same become one: its outgoing weights take over what the other gave."""

import torch

from hf_efficient.functional.structured import Moments

RIDGE = 1e-6
"""Keeps activations that are all but constant from being divided by, relative to their mean square."""


class Merger:
    """The units of one output projection, merged one pair after the other.

    Unit j with activations x_j (tokens, size) is taken for ``x_i A``, its least-squares fit on another unit i, and what
    it gave is given by i: ``W_i += W_j A^T``. What that loses of the output is the part of x_j that i does not explain,
    as W_j weighs it.

    Args:
        moments: of the projection's inputs with its outputs.
        weight: of the projection, shape (m, units * size); not changed.
        size: columns of a unit.
        alike: correlation, from 0 to 1, below which two units stay apart.

    Attributes:
        weight: as it is after the merges so far, float64; columns of units that are gone are zero.
        bias: what is to be added to the projection's, shape (m,).
        left: units that are still there, shape (units,), bool.
    """

    def __init__(self, moments: Moments, weight: torch.Tensor, size: int, alike: float = 0.0):
        self.size, self.weight = size, weight.detach().double().cpu().clone()
        units = self.weight.shape[1] // size
        self.bias, self.left = torch.zeros(len(self.weight), dtype=torch.float64), torch.ones(units, dtype=torch.bool)
        self._means, self._of_all, self._alike = moments.mean_x, moments.tt, alike
        xx = moments.xx
        xx += RIDGE * xx.diagonal().mean().clamp_min(1e-12) * torch.eye(len(xx), dtype=xx.dtype)
        self._blocks = xx.view(units, size, units, size).transpose(1, 2)  # (j, i, size of j, size of i)
        self._inverses = torch.linalg.inv(self._blocks.diagonal().permute(2, 0, 1))  # (unit, size, size)
        self._costs, self._partners = torch.zeros(units, dtype=torch.float64), torch.zeros(units, dtype=torch.long)
        for unit in range(units):
            self._update(unit)

    def _update(self, unit: int) -> None:
        """The partner that ``unit`` loses least with."""
        row, columns = self._blocks[unit], self._columns(unit)
        own = row[unit]
        unexplained = own - row @ self._inverses @ row.mT  # (i, size, size)
        costs = (unexplained * (columns.T @ columns)).sum((1, 2))
        apart = 1 - unexplained.diagonal(dim1=1, dim2=2).sum(1) / own.trace() < self._alike**2
        apart[unit] = True
        costs[apart | ~self.left] = torch.inf
        self._partners[unit] = costs.argmin()
        self._costs[unit] = costs.min()

    def _columns(self, unit: int) -> torch.Tensor:
        return self.weight[:, unit * self.size : (unit + 1) * self.size]

    def cheapest(self) -> tuple[float, int, int]:
        """Share of the outputs' variance that is lost by the best merge, the unit that goes, and the one that stays.

        The share is infinite where no two units that are left are alike enough.
        """
        unit = int(self._costs.argmin())
        return self._costs[unit].item() / max(self._of_all, 1e-12), unit, int(self._partners[unit])

    def merge(self, gone: int, into: int) -> None:
        """Let ``into`` give what ``gone`` gave."""
        columns = self._columns(gone)
        fit = self._blocks[gone, into] @ self._inverses[into]  # x_gone is about x_into fit^T
        means = self._means.view(-1, self.size)
        self._columns(into).add_(columns @ fit)
        self.bias += columns @ (means[gone] - fit @ means[into])
        columns.zero_()
        self.left[gone], self._costs[gone] = False, torch.inf
        for unit in self.left.nonzero().flatten().tolist():
            if unit == into or self._partners[unit] == gone:
                self._update(unit)
