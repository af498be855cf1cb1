"""The `lightning` command: dispatches, and decides how an error is shown and with which code the process ends.

torch is imported only when there is something to run, so that `--help` and `--version` answer at once.
"""

import difflib
import os
import sys
from importlib.metadata import version
from typing import NoReturn

from lit_adv.compose import ConfigError

SUBCOMMANDS = ("fit", "validate", "test", "predict")

_OVERVIEW = """\
lit_adv: craft, attribute, defend against and explain adversarial images

usage: lightning <fit|validate|test|predict> --config FILE [--config FILE ...] [--key.of.the.config=value ...]

  fit        train what the config names
  validate   run the validation set through a checkpoint
  test       run the test set through a checkpoint, tables and figures in the run's folder
  predict    run the prediction set through a checkpoint

  lightning fit --config configs/digits/victims/small_cnn.yaml     train a classifier to attack
  lightning fit --config configs/cifar10/redrl.yaml --trainer.max_epochs=1 --data.batch_size=64
  lightning test --config runs/.../config.yaml --ckpt_path best    test a run
  lightning fit --config runs/.../config.yaml --ckpt_path last     go on with a run
  lightning fit --config FILE --print_config                       the whole config, nothing is run
  lightning fit --help                                             every option
  lightning fit --model.help REDRL                                 the arguments of a class

  --config FILE   a YAML file; later files and options win. `base: other.yaml` in it builds on another file
  --run_dir DIR   the run's folder, in place of a new one under runs/
  --ckpt_path     a file, or `last` or `best` of the run's folder
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
    if arguments[0] not in SUBCOMMANDS:
        near = difflib.get_close_matches(arguments[0], SUBCOMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it comes first and is one of {', '.join(SUBCOMMANDS)}"
        _fail(f"lightning: there is no subcommand {arguments[0]!r} ({hint})", 2)
    # LightningCLI 2.6 calls what jsonargparse 5 will drop; our pins keep the two together
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    try:
        _run(arguments, debug)
    except KeyboardInterrupt:
        _fail("interrupted before there was anything to save", 130)


def _run(arguments: list[str], debug: bool) -> None:
    from lit_adv import app, diagnosis

    try:
        app.run(arguments)
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


def _fail(message: str, code: int) -> NoReturn:
    print(message if code >= 128 else f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
