"""Which of many small cuts to make together: dynamic programming over a budget."""

from collections.abc import Sequence

import numpy as np

STEPS = 2000
"""Parts that the budget is divided into; costs are rounded up to whole ones."""


def allocate(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> list[int] | None:
    """For each item one of its options, so that the sum of errors is least and the sum of costs within ``budget``.

    The multiple-choice knapsack that ZipLM (Kurtic et al. 2023, arXiv 2302.04089) solves for shapes.

    Args:
        errors, costs: for each item, of each of its options; costs are not negative.

    Returns:
        the index of each item's option; None where even the cheapest options exceed the budget.
    """
    if budget < 0 or sum(min(options) for options in costs) > budget:
        return None
    step = budget / STEPS or 1.0
    best = np.zeros(STEPS + 1)
    chosen = []
    for item_errors, item_costs in zip(errors, costs, strict=True):
        totals = np.full((len(item_errors), STEPS + 1), np.inf)
        for option, (error, cost) in enumerate(zip(item_errors, item_costs, strict=True)):
            taken = round(cost / step)  # rounding errors of many items cancel out; rounded up they would add up
            if taken <= STEPS:
                totals[option, taken:] = best[: STEPS + 1 - taken] + error
        chosen.append(totals.argmin(0))
        best = totals.min(0)
    if not np.isfinite(best[-1]):  # the cheapest, rounded, do not fit, but as they are they do
        return [min(range(len(options)), key=options.__getitem__) for options in costs]
    left, options = STEPS, []
    for item_costs, choice in zip(reversed(costs), reversed(chosen), strict=True):
        option = int(choice[left])
        options.append(option)
        left -= round(item_costs[option] / step)
    return options[::-1]
