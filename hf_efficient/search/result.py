"""What a search found: a table, pictures, and the one that is picked, as a recipe and as a finished run."""

import logging
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import ConfigError
from hf_efficient.files import atomic_folder, atomic_path, write_json, write_text
from hf_efficient.picture import AFTER_COLOUR, BEFORE_COLOUR, MUTED_COLOUR, blank
from hf_efficient.recipe import Recipe
from hf_efficient.search.earlier import STUDY
from hf_efficient.search.goals import Goals, Rule
from hf_efficient.search.proposing import FIGURES
from hf_efficient.search.study import AS_GIVEN, EARLIER, ERROR, STAGES, STOPPED, VALUES, completed, is_void
from hf_efficient.search.trials import WHOLE

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

MARKDOWN, CHOSEN = "study.md", "chosen.yaml"
_PICTURES = {
    "history.png": "plot_optimization_history",
    "importance.png": "plot_param_importances",
    "parallel.png": "plot_parallel_coordinate",
}


@dataclass(frozen=True)
class Found:
    """A study as plain values.

    Attributes:
        trials: of each that counts: number, state, values, figures (of the whole training), after (share -> figures),
            stages, and where it was stopped or failed, why.
        front: numbers of the trials that keep the constraints and that no other one dominates.
        chosen: number of the one that is picked; None where there is none.
    """

    goals: Goals
    trials: list[dict[str, Any]]
    front: list[int]
    chosen: int | None
    rule: str

    @classmethod
    def of(cls, study: "optuna.Study", goals: Goals, rule: Rule | None = None) -> "Found":
        """
        Raises:
            ConfigError: no trial fits ``rule``.
        """
        trials = [_plain(trial) for trial in study.get_trials(deepcopy=False) if not is_void(trial)]
        whole = {trial["number"]: trial["figures"] for trial in trials if trial["figures"]}
        kept = {number: figures for number, figures in whole.items() if max(goals.excesses(figures), default=0) <= 0}
        front = goals.front({number: goals.values(figures) for number, figures in kept.items()})
        if rule is not None:
            return cls(goals, trials, front, rule.picked(whole), str(rule))
        given = next((trial["figures"] for trial in trials if trial["as_given"] and trial["figures"]), None)
        chosen, why = _usual(goals, {number: kept[number] for number in front}, given)
        return cls(goals, trials, front, chosen, why)

    def trial(self, number: int) -> dict[str, Any]:
        return next(trial for trial in self.trials if trial["number"] == number)

    def plain(self) -> dict[str, Any]:
        return {
            "objectives": list(map(str, self.goals.objectives)),
            "constraints": list(map(str, self.goals.constraints)),
            "front": self.front,
            "chosen": self.chosen,
            "rule": self.rule,
            "trials": self.trials,
        }

    def markdown(self, title: str, notes: Sequence[str] = ()) -> str:
        """The table of all trials."""
        wanted = [goal.name for goal in self.goals.objectives] + [bound.name for bound in self.goals.constraints]
        names = list(dict.fromkeys(wanted))
        keys = list(dict.fromkeys(key for trial in self.trials for key in trial["values"]))
        short = shortest(keys)
        lines = [f"# {title}", "", *(f"{note}\n" for note in notes)]
        lines += [
            f"| trial | {' | '.join([*names, *short.values()])} | |",
            "|---:" * (1 + len(names) + len(keys)) + "|:---|",
        ]
        for trial in self.trials:
            figures = trial["figures"] or {}
            cells = [_cell(figures.get(name)) for name in names] + [_cell(trial["values"].get(key)) for key in keys]
            lines.append(f"| {trial['number']} | {' | '.join(cells)} | {self._remark(trial)} |")
        return "\n".join(lines) + "\n"

    def _remark(self, trial: Mapping[str, Any]) -> str:
        said = ["as given"] if trial["as_given"] else []
        said += [f"of {trial['earlier']}"] if trial["earlier"] else []
        said += ["**chosen**"] if trial["number"] == self.chosen else []
        said += ["front"] if trial["number"] in self.front else []
        said += [trial["why"]] if trial["why"] else []
        return ", ".join(said).replace("|", "\\|")

    def save(self, folder: Path, study: "optuna.Study", title: str, notes: Sequence[str] = ()) -> None:
        """Write table, JSON and pictures."""
        write_json(folder / STUDY, self.plain())
        write_text(folder / MARKDOWN, self.markdown(title, notes))
        if len(self.goals.objectives) > 1 and self.front:
            with atomic_path(folder / "front.png") as path:
                self.picture(title).savefig(path, format="png", dpi=120)
        _draw(study, self.goals, folder)

    def picture(self, title: str) -> Any:
        """The first two objectives: all trials, the front as a line, the recipe as given marked."""
        one, other = self.goals.objectives[:2]
        figure = blank(7, 4.6, title)
        axes = figure.subplots()
        whole = [trial for trial in self.trials if trial["figures"]]
        points = {trial["number"]: (trial["figures"][other.name], trial["figures"][one.name]) for trial in whole}
        rest = [points[number] for number in points if number not in self.front]
        if rest:
            axes.scatter(*zip(*rest, strict=True), color=BEFORE_COLOUR, label="dominated", zorder=2)
        line = sorted(points[number] for number in self.front)
        axes.plot(*zip(*line, strict=True), "o-", color=AFTER_COLOUR, label="front", zorder=3)
        for trial in whole:
            if trial["as_given"]:
                axes.scatter(
                    *points[trial["number"]], marker="s", s=90, facecolor="none", edgecolor=MUTED_COLOUR, zorder=4
                )
                axes.annotate(
                    "as given", points[trial["number"]], xytext=(6, -12), textcoords="offset points", fontsize=9
                )
            if trial["number"] == self.chosen:
                axes.annotate("chosen", points[trial["number"]], xytext=(6, 6), textcoords="offset points", fontsize=9)
        axes.set_xlabel(str(other))
        axes.set_ylabel(str(one))
        axes.legend(frameon=False)
        return figure


def _usual(
    goals: Goals, front: Mapping[int, Mapping[str, float]], given: Mapping[str, float] | None
) -> tuple[int | None, str]:
    """Of one objective, the best; of several, the best by the second that loses nothing of the first."""
    first = goals.objectives[0]
    if not front:
        return None, ""

    def best(objective: Any, among: Mapping[int, Mapping[str, float]]) -> int:
        sign = 1 if objective.maximize else -1
        return max(among, key=lambda number: (sign * among[number][objective.name], -number))

    if len(goals.objectives) == 1 or given is None:
        return best(first, front), str(first)
    kept = {n: figures for n, figures in front.items() if not first.better(given[first.name], figures[first.name])}
    if not kept:
        return best(first, front), str(first)
    second = goals.objectives[1]
    return best(second, kept), f"{second} that loses nothing of {first.name} against the recipe as given"


def _plain(trial: Any) -> dict[str, Any]:
    attrs = trial.user_attrs
    after = attrs.get(FIGURES, {})
    took = None if trial.duration is None else round(trial.duration.total_seconds(), 2)
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "as_given": bool(attrs.get(AS_GIVEN)),
        "values": attrs.get(VALUES, {}),
        "figures": after.get(str(WHOLE)),
        "after": after,
        "stages": attrs.get(STAGES, []),
        "earlier": attrs.get(EARLIER, ""),
        "why": attrs.get(STOPPED) or attrs.get(ERROR) or "",
        "seconds": took,
    }


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _draw(study: "optuna.Study", goals: Goals, folder: Path) -> None:
    """Optuna's own pictures, of the first objective; those that it cannot draw of so few trials are left out."""
    import matplotlib
    import optuna.visualization.matplotlib as plots

    for name, function in _PICTURES.items():
        with warnings.catch_warnings(), matplotlib.rc_context({"figure.constrained_layout.use": True}):
            warnings.simplefilter("ignore")  # "experimental", and what matplotlib says of long labels
            try:
                axes: Any = getattr(plots, function)(_first(study), target_name=goals.objectives[0].name)
                figure = (axes if hasattr(axes, "figure") else axes[0]).figure
                with atomic_path(folder / name) as path:
                    figure.savefig(path, format="png", dpi=110)
                matplotlib.pyplot.close(figure)
            except (ValueError, RuntimeError, ZeroDivisionError) as error:
                logger.info("%s is not drawn: %s", name, error)


def _first(study: "optuna.Study") -> "optuna.Study":
    """The trials that were trained to their end, by the first objective alone, with keys short enough for an axis."""
    import optuna

    done = completed(study)
    short = shortest({key for trial in done for key in trial.params})
    made = optuna.create_study(direction=study.directions[0])
    for trial in done:
        params = {short[key]: value for key, value in trial.params.items()}
        distributions = {short[key]: kind for key, kind in trial.distributions.items()}
        made.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.values[0]))
    return made


def shortest(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key -> as few of its last parts as tell it from the others.

    >>> shortest(["stages.a.rate", "stages.b.rate", "seed"])
    {'stages.a.rate': 'a.rate', 'stages.b.rate': 'b.rate', 'seed': 'seed'}
    """
    ends = {key: [".".join(key.split(".")[-count:]) for count in range(1, len(key.split(".")) + 1)] for key in keys}
    return {
        key: next((end for end in mine if not any(end in other for name, other in ends.items() if name != key)), key)
        for key, mine in ends.items()
    }


def chosen_recipe(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """What gives the chosen model again with `hf-efficient run`."""
    return recipe.changed(values).model_copy(update={"search": None})


def put_in_place(recipe: Recipe, found: Found, search_folder: Path, run_folder: Path) -> None:
    """Copy the chosen trial's stages to where a run has them, but for those that are there already; `Job.run` then
    exports, judges and measures.

    Raises:
        ConfigError: they are not there any more.
    """
    assert found.chosen is not None
    trial = found.trial(found.chosen)
    for name, key in zip(recipe.stages, trial["stages"], strict=True):
        source, target = search_folder / "stages" / key, run_folder / "stages" / name
        if target.is_dir():
            continue
        if not source.is_dir():
            raise ConfigError(
                f"trial {found.chosen} was trained in {source}, which is gone: only those of the front are kept; "
                f"`hf-efficient run {search_folder / CHOSEN}` trains it again"
            )
        with atomic_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
