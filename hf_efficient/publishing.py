"""A finished run as one repository on the Hub: model and card, exports, report and picture, and the recipe."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from hf_efficient.card import LOADING, MODEL, TRAINING, complete, loading, public_notes
from hf_efficient.errors import ConfigError
from hf_efficient.files import read_json
from hf_efficient.hub import CARD, LOCAL, branch, push_files, pushed_files, repository, without_paths
from hf_efficient.phase import FINAL
from hf_efficient.portable import portable_files
from hf_efficient.predictor import EXPORTED, newest_finished
from hf_efficient.recipe import Recipe
from hf_efficient.run import RECIPE
from hf_efficient.runtimes import MANIFEST, format_of
from hf_efficient.space import space_files

REPORT = "report.json"


@dataclass(frozen=True)
class Published:
    """What `publish` pushed.

    Attributes:
        repo_id: owner and name.
        url: of the commit, or of the pull request.
        files: paths in the repository.
    """

    repo_id: str
    url: str
    files: list[str]


def publish(
    run: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    pull_request: bool = False,
    portable: bool = False,
    space: bool = False,
    message: str = "Finished model",
    token: str | None = None,
) -> Published:
    """Push the finished ``run`` (its folder, or that of a recipe's runs: then the newest) in one commit.

    All of it arrives, or nothing is visible; what large files have arrived by then need not be sent again.

    Args:
        private: whether the repository is, where it is made; None: as the owner's account says.
        revision: branch, made where there is none; None: main.
        pull_request: ask for the commit to be taken over, rather than change the branch.
        portable: so that the model loads where hf_efficient is not installed, with ``trust_remote_code=True``.
        space: the run's page as a Space, in place of the model's repository; with what its app has prepared, such as a
            knowledge base.
        token: None: that of HF_TOKEN, or of `hf auth login`.

    Raises:
        ConfigError: no finished run.
        HubError: it did not arrive.
    """
    folder, kind = newest_finished(run), "space" if space else "model"
    if space and portable:
        raise ConfigError("a Space serves the run as it is: give portable, or space, but not both")
    # What cannot be pushed is refused before anything is made there
    files = _space(folder) if space else repository_files(folder, repo_id, portable)
    name = repository(repo_id, folder, token=token, private=private, kind=kind)
    if name != repo_id and not space:  # without an owner, it is the token's
        files[CARD] = _card(folder, name, portable).encode()
    if revision is not None:
        branch(name, revision, folder, token=token, kind=kind)
    made = push_files(
        files,
        folder,
        name,
        message=message,
        token=token,
        revision=revision,
        pull_request=pull_request,
        kind=kind,
    )
    return Published(name, made.pr_url or made.commit_url, sorted(files))


def repository_files(run: Path, repo_id: str, portable: bool = False) -> dict[str, Path | bytes]:
    """Path in the repository -> file, or content, of a finished run; nothing names this machine.

    Raises:
        ConfigError: a damaged file, or a model that cannot be ``portable``.
        HubError: nothing to push.
    """
    final, export = run / FINAL, run / EXPORTED
    files: dict[str, Path | bytes] = {name: final / name for name in pushed_files(final)}
    if (exported := _format(run)) is not None:
        files.update({f"{exported}/{name}": export / name for name in pushed_files(export)})
    files[REPORT] = _json(_public(read_json(run / REPORT)))
    files[RECIPE] = _recipe(run).encode()
    if portable:
        files.update(portable_files(final))
    files[CARD] = _card(run, repo_id, portable).encode()
    return files


def _format(run: Path) -> str | None:
    """Of the run's export; None where it has none."""
    return format_of(run / EXPORTED) if (run / EXPORTED / MANIFEST).is_file() else None


def _space(run: Path) -> dict[str, Path | bytes]:
    return space_files(run, Recipe.load(run / RECIPE), _recipe(run))


def _public(report: Mapping[str, Any]) -> dict[str, Any]:
    return {**without_paths(dict(report)), "notes": public_notes(report.get("notes", []))}


def _recipe(run: Path) -> str:
    """The recipe as it was run; where it named files of this machine, a reader has to name his own."""
    values = Recipe.load(run / RECIPE).model_dump(exclude_defaults=True)
    text = yaml.safe_dump(without_paths(values), sort_keys=False, allow_unicode=True)
    return f"# Put files of your own in place of {LOCAL}\n{text}" if LOCAL in text else text


def _card(run: Path, repo_id: str, portable: bool) -> str:
    try:
        card = ModelCard.load(run / FINAL / CARD)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the run's card cannot be read ({error}); run the recipe again") from error
    if portable:
        section = f"{loading(run / FINAL, portable=True)}\n\n"
        card.text = re.sub(rf"{LOADING}.*?(?={TRAINING})", lambda _: section, card.text, count=1, flags=re.DOTALL)
    card.text = card.text.replace(TRAINING, f"{_more(_format(run))}\n\n{TRAINING}", 1)
    complete(card, repo_id)
    return str(card)


def _more(exported: str | None) -> str:
    """What else is in the repository."""
    lines = ["## What else is here", ""]
    if exported is not None:
        lines += [
            f"`{exported}/` is the same model for a faster runtime, measured above (`pip install "
            f"'hf-efficient[{exported}]'`):",
            "",
            "```python",
            "from hf_efficient import exported_pipeline",
            "",
            f'predict = exported_pipeline("{MODEL}")',
            "```",
            "",
        ]
    return "\n".join([*lines, f"`{REPORT}` has all figures; `hf-efficient run {RECIPE}` trains the model again."])


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
