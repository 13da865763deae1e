"""`hf-efficient profile`: where a model's time and bytes go here, and what each technique can give at most."""

import argparse
from typing import Any

from hf_efficient.cli.telling import Teller

EXAMPLES = 256


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("profile", help="where a model's time and bytes go, and what could be gained")
    parser.add_argument("model", help="folder of a model with its processor, e.g. runs/.../final")
    parser.add_argument("data", nargs="+", metavar="data.key=value", help="real inputs, e.g. data.test=test.csv")
    parser.add_argument("--batch-size", type=int, default=32, help="beside single examples (default: 32)")
    parser.add_argument("--to", help="folder to write (default: `profile` beside the model's folder)")
    parser.add_argument("--task", help="e.g. text-classification (default: as its run or its class tells)")
    parser.add_argument("--devices", type=int, help="predict a training on up to so many devices, too (1 to 1024)")
    parser.add_argument("--link-gbit", type=float, help="Gbit/s between them (default: as between processes here)")
    parser.add_argument("--link-us", type=float, help="microseconds until the first byte arrives (default: the same)")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace, tell: Teller) -> None:
    from hf_efficient.cli.run_command import quiet_libraries

    quiet_libraries()
    from pathlib import Path

    from rich.console import Console

    from hf_efficient.cli.model_and_data import judged_split, prepare
    from hf_efficient.files import refuse_other_contents
    from hf_efficient.profiling import PROFILE, profile
    from hf_efficient.profiling.scaling import check_devices, scaling

    _check_link(options)
    folder = Path(options.to or Path(options.model).absolute().parent / "profile")
    refuse_other_contents(folder, PROFILE)
    task, model, splits = prepare(options.model, options.task, options.data)
    if options.devices is not None:
        check_devices(options.devices, model.device.type)
    _, rows = judged_split(splits)
    drawn = task.encode(rows.shuffle(0).select(range(min(EXAMPLES, len(rows)))))
    given = (model, list(drawn), task.collator())
    with Console(stderr=True).status("profile") as status:

        def doing(step: str) -> None:
            status.update(f"profile: {step}")

        made = profile(*given, options.batch_size, tell=doing)
        made.save(folder)
        if options.devices is not None:
            made.scaling = scaling(*given, options.devices, options.batch_size, _link(options), tell=doing)
            made.save(folder)
    tell({"folder": folder, **made.to_dict()}, made, f"\nprofile {folder / 'profile.md'}")


def _check_link(options: argparse.Namespace) -> None:
    from hf_efficient.errors import ConfigError

    given = {"--link-gbit": options.link_gbit, "--link-us": options.link_us}
    named = [name for name, value in given.items() if value is not None]
    if named and options.devices is None:
        raise ConfigError(f"{named[0]} is about links between --devices; add --devices, or drop it")
    if len(named) == 1:
        raise ConfigError(f"{named[0]} alone is half a link; give --link-gbit and --link-us")
    if named and not (options.link_gbit > 0 and options.link_us >= 0):
        raise ConfigError(
            f"a link needs --link-gbit > 0 and --link-us >= 0, got {options.link_gbit:g} and {options.link_us:g}"
        )


def _link(options: argparse.Namespace) -> Any:
    """The link that was given; None where it is to be measured."""
    from hf_efficient.profiling.scaling import Link

    return None if options.link_gbit is None else Link(options.link_gbit * 1e9 / 8, options.link_us * 1e-6)
