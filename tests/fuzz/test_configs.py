"""Any config, however wrong: it is used, or refused in words; never a traceback, a hang or gigabytes."""

import contextlib
import copy
import io
import math
import os
import random
import re
import resource
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_adv import app, cli
from lit_adv.compose import compose, dump
from lit_adv.models import Classifier

CONFIGS = (
    "digits/victims/small_cnn.yaml",
    "digits/redrl.yaml",
    "digits/many.yaml",
    "digits/adversarial_training.yaml",
    "digits/adversarial_training_trades.yaml",
    "digits/universal.yaml",
    "digits/generator.yaml",
    "digits/robustness.yaml",
    "digits/robustness_report.yaml",
    "digits/neutralization.yaml",
    "digits/saliency.yaml",
    "digits/transferability.yaml",
    "digits/write_adversarial.yaml",
    "digits/perceptual.yaml",
    "digits/distillation.yaml",
    "digits/parseval.yaml",
    "cifar10/victims/densenet121.yaml",
    "cifar10/transferability.yaml",
    "tiny_imagenet/redrl.yaml",
    "identify.yaml",
)
TEXTS = (
    *("", " ", "none", "null", "true", "nan", "-inf", "1e999", "8/255", "1/0", "0x", "é\u202eß\U0001f600", "a\nb: c"),
    *("'", '"', "{", "[", "}", "&a", "*a", "- x", "${", "${vars.nothing}", "${model}", "${oc.env:HOME}", "${now:}"),
    *("<run>", "<run>/<run>", "../..", "/dev/null", "/", "~", "\0", "%s %d {}", "--config", "x" * 5000, "\ud800"),
    *(
        "!!python/object:os.system",
        "=",
        "a=b",
        "a.b",
        ".",
        "..",
        "class_path",
        "@",
        "#",
        "\\",
        "\t",
        "\r",
        "best",
        "last",
    ),
)
CLASSES = (
    *("os.system", "builtins.eval", "nowhere.Nothing", "torch.nn.Linear", "torch.Tensor", "lit_adv.tasks.REDRL", "PGD"),
    *("REDRL", "Digits", "lit_adv.attacks", "lit_adv.data.load_attack", "VictimClassifier", "torch.optim.SGD", "FGSM"),
    *("lit_adv.attacks.attack.Attack", "Attack", "pytorch_lightning.LightningModule", "RunProgress", "lit_adv..PGD"),
    *(
        "AdversarialDataModule",
        "FitAttack",
        "lit_adv.callbacks.RobustnessTable",
        "Center",
        "torch.hub.load",
        "AutoAttack",
    ),
    *("Arrays", "ImageFolder", "PictureFolder", "EnsembleTransfer", "GeneratedAttack", "lit_adv.models.classifier"),
    *("pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.loggers.CSVLogger", "PerceptualAttack", "JSMA"),
)
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**400, 0.0, -0.0, 0.5, -1.5, 1e-300, 1e300),
    *(math.nan, math.inf, -math.inf, True, False),
)
GIGABYTE = 2**30


def paths_of(content, path=()):
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def a_value(draw, depth=0):
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return draw.choice(NUMBERS)
    if kind == 1:
        return draw.choice(TEXTS)
    if kind == 2:
        return None
    if kind == 3:
        return draw.choice(CLASSES)
    if kind == 4:
        return draw.randrange(-(2**40), 2**40) if draw.random() < 0.5 else draw.uniform(-2, 2)
    if kind == 5:
        return [a_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 6:
        return {a_key(draw): a_value(draw, depth + 1) for _ in range(draw.randrange(3))}
    arguments = {a_key(draw): a_value(draw, depth + 1) for _ in range(draw.randrange(2))}
    return {"class_path": draw.choice(CLASSES), "init_args": arguments}


def a_key(draw):
    return draw.choice((*TEXTS, *CLASSES, "eps", "steps", "norm", "init_args", "class_path", "base", 3, True, 1.5))


def mutated(content, draw):
    """A copy with one to three things changed, and the keys on the way to the first of them."""
    content = copy.deepcopy(content)
    first = None
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path = draw.choice(list(paths_of(content)) or [()])
        first = first or path
        if not path:
            continue
        place = content
        for key in path[:-1]:
            place = place[key]
        kind = draw.randrange(10)
        if kind == 0:
            del place[path[-1]]
        elif kind == 1 and isinstance(place, dict):
            key = str(path[-1])
            cut = draw.randrange(len(key) + 1)
            place[key[:cut] + draw.choice(("x", "", "+", ".", " ", "é")) + key[cut + draw.randrange(2) :]] = place.pop(
                path[-1]
            )
        elif kind == 2 and isinstance(place, dict):
            place[a_key(draw)] = a_value(draw)
        elif kind == 3:
            place[path[-1]] = copy.deepcopy(draw.choice(list(leaves_of(content)) or [None]))
        else:
            place[path[-1]] = a_value(draw)
    return content, first


def leaves_of(content):
    for path in paths_of(content):
        value = content
        for key in path:
            value = value[key]
        yield value


def as_text(content, draw):
    """YAML, now and then with a mistake in the text itself."""
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=draw.random() < 0.5)
    except (yaml.YAMLError, UnicodeEncodeError, ValueError):
        text = repr(content)
    if draw.random() < 0.15:
        bits = (
            "\t",
            "&a ",
            "*a",
            "!!python/object:os.system ",
            "!!binary ",
            "<<: *a\n",
            "\n",
            "- ",
            ": ",
            "{",
            "]",
            "'",
        )
        bits += (
            "!!set ",
            "? ",
            "%",
            "\x00",
            "\ufeff",
            "---\n",
            "...\n",
            "!!timestamp ",
            "!x ",
            "&a [*a]",
            "| ",
            "[" * 400,
        )
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(bits) + text[at + draw.randrange(2) :]
    return text


def prepared(name, checkpoint):
    """The config with a checkpoint in place of each file of weights that it wants."""
    text = dump(compose(name))
    content = yaml.load(re.sub(r"[\w./-]+\.ckpt|\bFILE\b", str(checkpoint), text), yaml.CSafeLoader)
    if content["data"]["class_path"] == "PictureFolder":
        content["data"]["init_args"] = {"path": str(checkpoint.with_name("picture.png"))}
    return content


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A victim's checkpoint, in a folder to work in, with so little memory that a wrong size shows."""
    folder = tmp_path_factory.mktemp("configs")
    torch.manual_seed(0)
    model = Classifier("small_cnn", 10, 16, 1)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "classifier": model.spec}, folder / "victim.ckpt")
    Image.new("L", (8, 8)).save(folder / "picture.png")
    before, limits = os.getcwd(), resource.getrlimit(resource.RLIMIT_AS)
    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * GIGABYTE, limits[1]))
    yield folder / "victim.ckpt"
    resource.setrlimit(resource.RLIMIT_AS, limits)
    os.chdir(before)


class Outcome:
    def __init__(self, code, error, err, seconds):
        self.code, self.error, self.err, self.seconds = code, error, err, seconds


def outcome(arguments):
    """What the command line does with it, in this process, without the training itself."""
    before = sys.argv
    out, err = io.StringIO(), io.StringIO()
    code, error, start = 0, None, time.perf_counter()
    run, app.AdvCLI._run_subcommand = app.AdvCLI._run_subcommand, lambda self, subcommand: None
    try:
        sys.argv = ["lightning", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException as found:
        error = found
    finally:
        app.AdvCLI._run_subcommand = run
        sys.argv = before
    return Outcome(code, error, err.getvalue(), time.perf_counter() - start)


# up to half a second an example
@settings(max_examples=max(1, settings.default.max_examples // 5))
@given(st.builds(random.Random, st.integers(0, 2**64 - 1)))
def test_a_config_is_used_or_refused_in_words(checkpoint, draw):
    content, first = mutated(prepared(draw.choice(CONFIGS), checkpoint), draw)
    Path("config.yaml").write_bytes(as_text(content, draw).encode("utf-8", "surrogatepass"))
    subcommand = draw.choice(("fit", "fit", "test", "predict"))
    options = [] if subcommand == "fit" else ["--untrained=true"]
    found = outcome([subcommand, "--config", "config.yaml", *options])
    text = Path("config.yaml").read_bytes()
    assert found.error is None, (first, repr(found.error), text)
    assert found.code in (0, 2), (first, found.err, text)
    assert found.seconds < 30, (first, found.seconds, text)
    if found.code == 2:
        message = found.err[found.err.rindex("error: ") + len("error: ") :].strip()
        # what is wrong, and where
        assert re.search(r"\S.*: \S|must be given", message), (first, message)
        assert "Traceback" not in found.err, (first, found.err)
        assert len(message) < 10000, (first, message)


def test_the_configs_that_are_mutated_are_used_as_they_are(checkpoint):
    for name in ("digits/victims/small_cnn.yaml", "digits/redrl.yaml", "digits/robustness.yaml", "identify.yaml"):
        Path("config.yaml").write_text(dump(prepared(name, checkpoint)))
        found = outcome(["validate", "--config", "config.yaml", "--untrained=true"])
        assert (found.code, found.error) == (0, None), (name, found.err)
