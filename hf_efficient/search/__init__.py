"""Search: the recipe that is best by accuracy and measured speed, within a budget of trials.

Layout of `runs/<recipe>/<name>/` (name: "search" unless given)::

    search.yaml     the recipe that is searched, with its `search:` block
    study.db        Optuna's storage, unless another is given
    stages/<hash>/  what trials trained; a stage that trials share is there once
    trials/<n>/     recipe.yaml, figures.json, and what was said while it trained
    speeds/         latency and throughput of each shape of model, measured once
    study.json, study.md, front.png, history.png, importance.png, parallel.png
    chosen.yaml     what gives the chosen model again; its run lies beside the search, as any run
"""

from hf_efficient.search.searching import SearchResult, search

__all__ = ["SearchResult", "search"]
