"""Which exceptions are messages for the user, and how the parser's reports are made readable."""

import pytest
import torch

from lit_adv import diagnosis, runs
from lit_adv.attacks import PGD
from lit_adv.compose import expand_arguments


def caught(function):
    with pytest.raises(Exception) as info:  # noqa: PT011  whatever it raises is looked at
        function()
    return info.value


class BrokenModel(torch.nn.Module):
    def forward(self, images):
        raise ValueError("not of lit_adv")


def wrapped():
    try:
        PGD(eps=8)
    except ValueError as error:
        raise RuntimeError("around it") from error


@pytest.mark.parametrize(
    ("function", "ours", "deliberate"),
    [
        # a raise statement of ours
        (lambda: PGD(eps=8), True, True),
        # a mistake: our line made Python or torch raise
        (lambda: expand_arguments(5), False, False),
        # a raise statement of the user's model, in an attack of ours
        (lambda: PGD(eps=0.1)(BrokenModel(), torch.zeros(1, 1, 2, 2), torch.zeros(1).long()), False, True),
        (wrapped, False, True),
    ],
)
def test_only_what_our_code_raises_on_purpose_is_a_message(function, ours, deliberate):
    error = caught(function)
    assert diagnosis.said_by_us(error) is ours
    assert diagnosis.is_deliberate(error) is deliberate
    assert diagnosis.message_of(error) == str(error)


def test_a_refusal_by_the_system_is_a_message_where_our_code_asked(tmp_path):
    record = runs.RunRecord(tmp_path, {}, "", {})
    (tmp_path / "config.yaml").mkdir()
    error = caught(lambda: record.write(tmp_path, "fit"))
    assert isinstance(error, IsADirectoryError)
    # raised by pathlib, which our code called: the file is named, nothing of the program
    assert diagnosis.said_by_us(error)


def test_options_and_configs_become_one_tree():
    configs = [{"model": {"class_path": "A", "init_args": {"x": 1}}}, {"model": {"init_args": {"y": 2}}}]
    tree = diagnosis.tree_of(configs, ["--model.z=3", "--trainer.max_epochs", "4", "--flag"])
    assert tree["model"] == {"class_path": "A", "init_args": {"x": 1, "y": 2}, "z": "3"}
    assert tree["trainer"] == {"max_epochs": "4"}
    assert diagnosis.tree_of(configs, ["--model=B", "--model.z=3"])["model"] == {"class_path": "B", "z": "3"}


def test_the_nearest_names_are_few():
    assert diagnosis.nearest("max_epoch", ["max_epochs", "devices"]) == "did you mean max_epochs?"
    assert diagnosis.nearest("x", ["b", "a"]) == "there are a, b"
    assert diagnosis.nearest("PGDD", ["pgd", "PGD"]).startswith("did you mean")
    many = diagnosis.nearest("zzz", [f"name{i}" for i in range(99)] + ["az"])
    assert many.startswith("the nearest of 100 are ")
    assert many.count(",") < 5
