"""`hf-efficient serve`: a finished run as a page and an HTTP API."""

import argparse
from typing import Any

from hf_efficient.cli.model_and_data import add_run
from hf_efficient.cli.telling import Teller


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("serve", help="serve a finished run: a page and an HTTP API")
    add_run(parser)
    parser.add_argument("overrides", nargs="*", metavar="app.key=value", help="settings of the app")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; other than loopback asks for a token")
    parser.add_argument("--port", type=int, default=7860, help="0 for any that is free (default: 7860)")
    parser.add_argument("--token", help="what requests must bring (default: $HF_EFFICIENT_TOKEN)")
    parser.add_argument("--no-page", action="store_true", help="the API alone")
    parser.add_argument("--max-batch", type=int, default=32, help="requests answered at once (default: 32)")
    parser.add_argument("--queue", type=int, default=256, help="requests that may wait; more get a 503 (default: 256)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from dataclasses import asdict

    from hf_efficient.service import ServiceSettings, serve

    settings = ServiceSettings(
        host=options.host,
        port=options.port,
        token=options.token,
        page=not options.no_page,
        max_batch=options.max_batch,
        queue=options.queue,
        threads=options.threads,
        model=options.model,
    )
    serve(options.run, settings, options.overrides, announce=lambda address: tell(asdict(address), address))
