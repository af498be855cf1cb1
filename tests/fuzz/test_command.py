"""Any words after `lightning`: code 2 and a short message, or what they ask for; never a traceback."""

import contextlib
import io
import os
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv import cli

_TEXT = """
    fit test validate predict estimate verify export fti help - -- --- --config --config= -c --config=nowhere.yaml
    nowhere.yaml --config={} --help --run_dir --ckpt_path=last --ckpt_path --ckpt --to pt2 --to=onnx --out=x.pt2
    --version --allow-any-class --print_config --untrained=true --untrained=maybe --trainer.max_epochs=-1 --trainer
    --trainer= --trainer.callbacks+= --trainer.callbacks+=X --data= --data=Digits --data --data.attacks.x=null
    --data.attacks.x --data.attacks.=null --trainer.callbacks.attacks.x=null --model=REDRL --model.width=1 --model
    --model=a.b.c --model.help --model.help=Nothing --vars.x=1 --vars=3 ' " --sample --sample=0 --sample=-1 --sample=x
    --recraft=1 --seed=1.5 --name=x %s --config=${a} --model=${b} --seed_everything=-1 --seed_everything=1e99 @file
    $HOME * -h --num_classes=0 --image_size=-3 --mean nan --std=0 --print_config=x --checkpoint=3 --data.x.y.z=1
    --trainer.devices=99 --trainer.accelerator=gpu --trainer.strategy=x --trainer.precision=7 --no-such
"""
WORDS = _TEXT.split()
WORDS += ("", " ", "--config=a: b: c", "--a=&a [*a]", "--model={a: &a [*a]}", "--model=" + "[" * 500, "x" * 10000)
WORDS += ("\0", "é\u202e", "\ud800", "--config={trainer: 3}", "--config={data: {attacks: {x: null}}}", "a b")


def outcome(arguments):
    """Code, output and errors of the command in this process, whatever it wants to run."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv, code = sys.argv, ["lightning", *arguments], 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def _in_an_empty_folder(tmp_path_factory):
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("command"))
    yield
    os.chdir(before)


def some_words(draw):
    words = [draw.choice(WORDS) for _ in range(draw.randrange(6))]
    if draw.random() < 0.7:
        words.insert(0, draw.choice(("fit", "test", "predict", "validate", "estimate", "verify", "export")))
    return words


@pytest.mark.usefixtures("_in_an_empty_folder")
@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(st.builds(random.Random, st.integers(0, 2**64 - 1)))
def test_words_run_something_or_are_refused_in_a_few_lines(draw):
    words = some_words(draw)
    code, _, err = outcome(words)
    assert code in (0, 2), (words, err)
    if code == 2:
        assert "Traceback" not in err, words
        message = err[err.rindex("error:") :]
        assert len(message) < 2500, words
        assert len(message) > len("error: "), words
