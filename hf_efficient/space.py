"""A finished run as a Space: its page, served where everybody can try it."""

import json
from pathlib import Path

from hf_efficient import __version__
from hf_efficient.app import PREPARED, parse_app
from hf_efficient.hub import pushed_files
from hf_efficient.job import FINISHED
from hf_efficient.phase import FINAL
from hf_efficient.predictor import EXPORTED
from hf_efficient.recipe import Recipe
from hf_efficient.runtimes import MANIFEST, format_of

RUN = "run"
"""Folder of the run in a Space."""

_CARD = """---
title: {title}
emoji: 💡
colorFrom: blue
colorTo: green
sdk: gradio
app_file: app.py
pinned: false
tags:
- hf-efficient
---

The page of `{name}`, a run of [hf_efficient](https://pypi.org/project/hf-efficient/). `app.py` serves `run/`.
"""
_APP = '''"""Serve the run of this Space."""

import os

from hf_efficient.service import ServiceSettings, serve

port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
# Who may come here is the Space's to say
serve("{run}", ServiceSettings(host="0.0.0.0", port=port, public=True))
'''


def space_files(run: Path, recipe: Recipe, text: str) -> dict[str, Path | bytes]:
    """Path in the Space -> file, or content.

    Args:
        recipe: of the run.
        text: the same, without what names this machine.

    Raises:
        ConfigError: a damaged export.
        HubError: no model there.
    """
    is_exported = (run / EXPORTED / MANIFEST).is_file()
    served = EXPORTED if is_exported else FINAL
    files: dict[str, Path | bytes] = {
        f"{RUN}/{served}/{file}": run / served / file for file in pushed_files(run / served)
    }
    if is_exported:
        files[f"{RUN}/{FINAL}/README.md"] = run / FINAL / "README.md"  # without a final model no run is finished
    if recipe.app is not None and (run / PREPARED).is_dir():
        stays = parse_app(recipe.app, recipe.task)[0].stays
        prepared = [file for file in pushed_files(run / PREPARED) if file not in stays]
        files.update({f"{RUN}/{PREPARED}/{file}": run / PREPARED / file for file in prepared})
    extras = f"apps,{format_of(run / EXPORTED)}" if is_exported else "apps"
    texts = {
        f"{RUN}/recipe.yaml": text,
        f"{RUN}/run.json": json.dumps({"status": FINISHED}),
        "app.py": _APP.format(run=RUN),
        "requirements.txt": f"hf-efficient[{extras}]=={__version__}\n",
        "README.md": _CARD.format(title=recipe.name.replace("-", " ").capitalize(), name=recipe.name),
    }
    return {**files, **{path: text.encode() for path, text in texts.items()}}
