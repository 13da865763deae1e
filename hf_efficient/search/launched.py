"""A stage trained by a command of its own, such as `accelerate launch --num_processes 2`, while a worker waits.

The command runs `python -m hf_efficient.search.launched ORDER` on each of its processes, which end when it does.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from hf_efficient.errors import ConfigError, EfficientError
from hf_efficient.files import write_json
from hf_efficient.job import Job
from hf_efficient.recipe import Recipe
from hf_efficient.search.leases import Holder, holder, is_gone

ORDER = "order.json"
_SAID = "hf-efficient: "
_WATCH_SECONDS = 1.0

Train = Callable[[Job, str, Path, str, Mapping[str, str]], None]
"""As `Job.train`: of a job the stage of a name, in a folder, from a model, with the earlier stages' models."""


def training(launch: str) -> Train:
    """How stages are trained: by ``launch``, or here where it is empty.

    Raises:
        ConfigError: no command line.
    """
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise ConfigError(f"search.launch: {launch!r} is no command line ({error})") from None
    if not words:
        return Job.train

    def train(job: Job, name: str, folder: Path, model: str, earlier: Mapping[str, str]) -> None:
        recipe = job.recipe.model_dump(exclude={"search"})
        order = {"recipe": recipe, "stage": name, "model": model, "earlier": dict(earlier), "worker": holder()}
        write_json(folder / ORDER, order)
        _run([*words, "-m", "hf_efficient.search.launched", str(folder / ORDER)])
        (folder / ORDER).unlink()

    return train


def _run(command: list[str]) -> None:
    """Run ``command``, whose output goes to where this process's own goes.

    Raises:
        ConfigError: it cannot be started.
        EfficientError: it failed.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # `accelerate` lies there
    failed = ""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PATH": beside}
        )
    except OSError as error:
        raise ConfigError(f"search.launch: {command[0]!r} cannot be started ({error.strerror})") from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith(_SAID):
                    failed = line.removeprefix(_SAID).strip()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise EfficientError(failed or f"`{shlex.join(command)}` ended with {process.returncode}; see the trial's log")


def main(order: str) -> int:
    told = json.loads(Path(order).read_text(encoding="utf-8"))
    _end_with(told["worker"])
    try:
        job = Job.prepare(Recipe.model_validate(told["recipe"]))
        job.train(told["stage"], Path(order).parent, told["model"], told["earlier"])
    except EfficientError as error:
        print(f"{_SAID}{error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _end_with(worker: Holder) -> None:
    """End this process when ``worker`` is gone: another one may take its stage over."""

    def watch() -> None:
        while not is_gone(worker):
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="worker", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
