"""`hf-efficient push`: a finished run as a repository on the Hub."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("push", help="push a finished run to the Hub: model, card, exports, report, recipe")
    parser.add_argument("run", help="folder of a finished run, or of a recipe's runs: then the newest finished one")
    parser.add_argument("repository", help="name, or owner/name; made where there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make it private, where it is made")
    parser.add_argument("--revision", metavar="BRANCH", help="made where there is none (default: main)")
    parser.add_argument("--pr", action="store_true", help="as a pull request")
    parser.add_argument(
        "--portable", action="store_true", help="loads without hf_efficient, with trust_remote_code=True"
    )
    parser.add_argument("--space", action="store_true", help="the run's page as a Gradio Space, rather than the model")
    parser.add_argument("--message", default="Finished model", help="of the commit (default: Finished model)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from dataclasses import asdict

    from hf_efficient.publishing import publish

    made = publish(
        options.run,
        options.repository,
        private=options.private,
        revision=options.revision,
        pull_request=options.pr,
        portable=options.portable,
        space=options.space,
        message=options.message,
    )
    tell(asdict(made), *(f"  {name}" for name in made.files), made.url)
