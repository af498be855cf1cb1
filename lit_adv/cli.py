"""The `lightning` command: dispatches, and decides how an error is shown and with which code the process ends.

torch is imported only when there is something to run, so that `--help` and `--version` answer at once.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from lit_adv.compose import ConfigError

SUBCOMMANDS = ("fit", "validate", "test", "predict")
EXPORT, ESTIMATE, VERIFY, REPORT, DASHBOARD = "export", "estimate", "verify", "report", "dashboard"
_LONGEST = 2000

_OVERVIEW = """\
lit_adv: craft, attribute, defend against and explain adversarial images

usage: lightning <fit|validate|test|predict> --config FILE [--config FILE ...] [--key.of.the.config=value ...]
       lightning export --ckpt FILE --to <safetensors|pt2|onnx>

  fit        train what the config names
  validate   run the validation set through a checkpoint
  test       run the test set through a checkpoint, tables and figures in the run's folder
  predict    run the prediction set through a checkpoint
  export     write the classifier in a checkpoint for other programs; see lightning export --help
  estimate   say how much disk and time crafting will take: lightning estimate fit --config FILE
  verify     look whether a written set of adversarial images is whole; see lightning verify --help
  report     write a run's folder as one HTML page again: lightning report runs/...
  dashboard  lay out a Weights & Biases project: lightning dashboard --entity NAME --project NAME

  lightning fit --config configs/digits/victims/small_cnn.yaml     train a classifier to attack
  lightning fit --config configs/cifar10/redrl.yaml --trainer.max_epochs=1 --data.batch_size=64
  lightning test --config runs/.../config.yaml --ckpt_path best    test a run
  lightning fit --config runs/.../config.yaml --ckpt_path last     go on with a run
  lightning fit --config FILE --print_config                       the whole config, nothing is run
  lightning fit --help                                             every option
  lightning fit --model.help REDRL                                 the arguments of a class

  --config FILE   a YAML file; later files and options win. `base: other.yaml` in it builds on another file
  --run_dir DIR   the run's folder, in place of a new one under runs/
  --ckpt_path     a file, or `last` or `best` of the run's folder; `auto`: the last if there is one, or a new run
  --allow-any-class  let the config name classes of any package, whose code is then run
  --debug         show where in the program an error comes from (also LIT_ADV_DEBUG=1)
  --version
"""


def main() -> None:
    """Runs the command line in `sys.argv`; ends the process with code 2 for what the user can mend."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("LIT_ADV_DEBUG", "0") not in ("", "0")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_OVERVIEW, end="")
        return
    if arguments[0] == "--version":
        print(
            f"lit_adv {version('lit_adv')} (pytorch-lightning {version('pytorch-lightning')}, torch {version('torch')})"
        )
        return
    if arguments[0] == EXPORT:
        _export(arguments[1:], debug)
        return
    own = {ESTIMATE: _estimate, VERIFY: _verify, REPORT: _report, DASHBOARD: _dashboard}
    if arguments[0] not in SUBCOMMANDS and arguments[0] not in own:
        near = difflib.get_close_matches(arguments[0], (*SUBCOMMANDS, EXPORT, *own), n=1)
        hint = f"did you mean {near[0]}?" if near else f"it comes first and is one of {', '.join(SUBCOMMANDS)}"
        _fail(f"lightning: there is no subcommand {arguments[0]!r} ({hint})", 2)
    # LightningCLI 2.6 calls what jsonargparse 5 will drop; our pins keep the two together
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    try:
        if arguments[0] in own:
            own[arguments[0]](arguments[1:], debug)
        else:
            _run(arguments, debug)
    except KeyboardInterrupt:
        _fail("interrupted before there was anything to save", 130)


def _estimate(arguments: list[str], debug: bool) -> None:
    """`lightning estimate SUBCOMMAND --config FILE`: everything is made as for the run, which is not started."""
    if not arguments or arguments[0] not in SUBCOMMANDS:
        listed = ", ".join(SUBCOMMANDS)
        _fail(f"lightning estimate: a subcommand comes first and is one of {listed} (lightning estimate fit ...)", 2)
    from lit_adv import crafting_commands

    _run(arguments, debug, crafting_commands.estimate)


def _verify(arguments: list[str], debug: bool) -> None:
    """`lightning verify FOLDER`; ends the process with code 1 where a set is not whole."""
    parser = _Arguments(
        prog=f"lightning {VERIFY}",
        description="Looks whether a set that AdversarialWriter wrote is whole. Exit code 1: it is not.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="the folder that holds manifest.json")
    parser.add_argument("--sample", type=int, help="read only so many images, in place of all")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--recraft",
        type=int,
        metavar="N",
        help="craft N images again and compare; the job's --config and options follow",
    )
    given, rest = parser.parse_known_args(arguments)
    for name in ("sample", "recraft"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(given, name)}")
    if rest and given.recraft is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)} (--recraft N takes a job's options)")
    if given.recraft is not None and not rest:
        parser.error("--recraft needs the config that the set was written with (--config FILE)")
    from lit_adv import crafting_commands

    try:
        whole = crafting_commands.verify(Path(given.folder), given.sample, given.seed)
    except (ValueError, OSError) as error:
        if debug:
            raise
        _fail(str(error), 2)
    if given.recraft is not None:
        again = crafting_commands.Recraft(Path(given.folder), given.recraft, given.seed)
        _run(["predict", *rest], debug, again)
        whole = whole and again.same
    if not whole:
        sys.exit(1)


def _report(arguments: list[str], debug: bool) -> None:
    """`lightning report FOLDER ...`."""
    parser = _Arguments(
        prog=f"lightning {REPORT}",
        description="Writes report.html into the folders of runs: curves, tables, figures and config on one page that"
        " needs no network. Every fit and test ends with it.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="the folder of a run")
    from lit_adv.html_report import write_report

    for folder in parser.parse_args(arguments).folders:
        try:
            print(f"report: {write_report(folder)}", flush=True)
        except (OSError, ValueError) as error:
            if debug:
                raise
            _fail(str(error), 2)


def _dashboard(arguments: list[str], debug: bool) -> None:
    """`lightning dashboard`: the only verb that needs an account."""
    from lit_adv.dashboard import GROUPS

    parser = _Arguments(
        prog=f"lightning {DASHBOARD}",
        description="Makes a workspace and a report in Weights & Biases, with the panels of all runs of a project in"
        f" groups: {', '.join(group.name.lower() for group in GROUPS)}.",
        allow_abbrev=False,
    )
    parser.add_argument("--entity", required=True, help="your user or team")
    parser.add_argument("--project", required=True, help="that of trainer.logger.init_args.project")
    parser.add_argument("--name", default="lit_adv", help="of the workspace and the report")
    parser.add_argument("--dry_run", action="store_true", help="print the workspace as JSON, send nothing")
    given = parser.parse_args(arguments)
    from lit_adv import wandb_dashboard

    names = given.entity, given.project, given.name
    try:
        made = {"workspace": wandb_dashboard.workspace(*names), "report": wandb_dashboard.report(*names)}
    except (ImportError, ValueError) as error:
        if debug:
            raise
        _fail(str(error), 2)
    if given.dry_run:
        print(made["workspace"]._to_model().model_dump_json(by_alias=True, indent=1))
        return
    for kind, one in made.items():
        try:
            one.save()
        except Exception as error:  # whatever the client library has: no account, no network, no such project
            if debug:
                raise
            _fail(f"dashboard: Weights & Biases took no {kind}: {error} (is there a network, and an account?)", 2)
        print(f"{kind}: {one.url}", flush=True)


def _run(arguments: list[str], debug: bool, instead: Callable[[Any], None] | None = None) -> None:
    from lit_adv import app, diagnosis

    try:
        app.run(arguments, instead)
    except app.Stopped as stop:
        _fail(str(stop), stop.code)
    except ConfigError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except Exception as error:
        if debug or not diagnosis.said_by_us(error):
            raise
        _fail(diagnosis.message_of(error), 2)


def _export(arguments: list[str], debug: bool) -> None:
    """`lightning export`: needs no config and no trainer."""
    parser = _Arguments(
        prog=f"lightning {EXPORT}",
        description="Writes a classifier, its normalisation inside, from images in [0, 1] of any batch size to logits.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt", required=True, help="a checkpoint or an exported file; or weights, with --name")
    parser.add_argument("--to", choices=("safetensors", "pt2", "onnx"), help="the format; that of --out without it")
    parser.add_argument("--out", help="where to; beside the checkpoint without it")
    parser.add_argument("--name", help="the architecture of plain weights, such as RobustBench's: wide_resnet28_10")
    parser.add_argument("--num_classes", type=int, default=10, help="of plain weights")
    parser.add_argument("--image_size", type=int, default=32, help="of plain weights")
    parser.add_argument("--in_channels", type=int, default=3, help="of plain weights")
    parser.add_argument("--mean", type=float, nargs="+", help="of plain weights that do not say it")
    parser.add_argument("--std", type=float, nargs="+", help="of plain weights that do not say it")
    given = parser.parse_args(arguments)
    if given.to is None and given.out is None:
        parser.error("--to or --out must say the format")
    out = Path(given.out) if given.out else Path(given.ckpt).with_suffix(f".{given.to}")
    if given.to is not None and out.suffix != f".{given.to}":
        parser.error(f"--out must end in .{given.to}, got {out}")
    if out.resolve() == Path(given.ckpt).resolve():
        parser.error(f"--out must be another file than --ckpt, got {out}")
    from lit_adv.models.classifier import classifier, export_classifier, load_classifier

    try:
        if given.name is None:
            model = load_classifier(given.ckpt)
        else:
            sizes = (given.num_classes, given.image_size, given.in_channels)
            model = classifier(given.name, *sizes, given.ckpt, given.mean, given.std).eval()
        export_classifier(model, out)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        _fail(str(error), 2)
    print(f"exported: {out}")


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(_printable(message))


def _printable(message: str) -> str:
    # what a message quotes may be of any length, and hold halves of characters
    lines = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in message.splitlines()]
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def _fail(message: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    of_rank = f"rank {rank}: " if rank != "0" else ""
    message = _printable(message)
    print(message if code >= 128 else f"{of_rank}error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
