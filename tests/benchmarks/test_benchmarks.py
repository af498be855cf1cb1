"""The benchmark's own parts: counting, judging, ratios, tables. No other library is needed."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import attacks as bench
from benchmarks import contests
from benchmarks.report import Row, best_peer, figure, markdown, ratios, read_csv, short, write_csv
from lit_adv import attacks


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3))) * 20


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tiny().eval()


@pytest.fixture
def images():
    return bench.load_images(None, 4)[:, :, :8, :8]


def row(library, seconds, **changed):
    fields = {"model": "m", "attack": "a", "images": 10, "forwards": 2.0, "backwards": 1.0, "success": 0.5}
    return Row(**fields | {"library": library, "seconds": seconds, "norm": "l2", "mean_norm": 0.25} | changed)


ROWS = [
    row("lit_adv", 2.0),
    row("lit_adv", 4.0, setting="fold=False"),
    row("slow", 20.0, remark="its own way"),
    row("quick", 1.0, mean_norm=math.nan, success=0.0),
    row("lit_adv", 1.0, attack="alone"),
    row("lit_adv", 1.0, model="other"),
    row("quick", 3.0, model="other"),
]


# counting


def test_hooks_count_samples(model, images):
    with bench.counted(model, 4) as passes:
        model(images)
        model(images[:2])
        x = images.clone().requires_grad_()
        logits = model(x)
        torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
        logits[0, 1].backward()
    assert passes == [2.5, 2.0]
    model(images)
    assert passes == [2.5, 2.0]
    assert not model._forward_hooks


ATTACKS = [
    attacks.PGD(steps=3, fold=False),
    attacks.PGD(steps=6, eps=0.3, step_size=0.1, stop_at_success=True, fold=False),
    attacks.DeepFool(steps=6, fold=False),
    attacks.CarliniWagnerL2(c=1.0, steps=6, search_steps=2, fold=False),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_hooks_and_counters_agree(attack, model, images):
    labels = model(images).argmax(1)
    craft = contests.ours(attack, targeted=False)
    found, passes = bench.counted_call(craft, attack, model, images, labels, False)
    with bench.counted(model, 4) as hooked:
        again = craft(model, images, labels)
    assert torch.equal(found, again)
    assert passes == pytest.approx(tuple(hooked))
    assert min(passes) > 0


def test_time_is_of_the_processor(monkeypatch):
    clock = iter([3.0, 5.5])
    monkeypatch.setattr(bench.time, "process_time", lambda: next(clock))
    called = []
    assert bench.timed(lambda: called.append(1), torch.device("cpu")) == 2.5
    assert called == [1]


def test_success_and_norm_are_measured_here(model, images):
    labels = model(images).argmax(1)
    moved = images.clone()
    moved[:, :, 0, 0] += torch.tensor([0.03, -0.04, 0.0])
    moved[1, 0, 3, 3] += 0.5
    wrong = labels.clone()
    wrong[:2] = (labels[:2] + 1) % 3
    expected = {
        "l0": 1.5,
        "l1": 0.07 + 0.25,
        "l2": (0.05 + math.sqrt(0.05**2 + 0.25)) / 2,
        "linf": (0.04 + 0.5) / 2,
    }
    for norm, size in expected.items():
        judged = bench.judged(model, images, moved, wrong, False, norm)
        assert judged["success"] == 0.5
        assert judged["mean_norm"] == pytest.approx(size, abs=1e-6)
    assert bench.judged(model, images, moved, wrong, True, "l2")["success"] == 0.5
    assert math.isnan(bench.judged(model, images, images, labels, False, "l2")["mean_norm"])


# contests


def test_contestants_take_turns_and_the_best_round_counts(model, images, monkeypatch):
    order = []

    def peer(name):
        def craft(model, images, labels):
            order.append(name)
            model.head.weight.grad = torch.ones_like(model.head.weight)
            return images + 0.01

        return craft

    times = iter([9.0, 9.0, 5.0, 6.0, 4.0, 7.0, 8.0, 1.0])
    monkeypatch.setattr(bench, "best_of", lambda call, device: call() is None or next(times))
    contest = contests.Contest(
        norm="linf", ours=lambda: attacks.PGD(steps=2), peers={"one": peer("one"), "two": peer("two"), "no": peer("no")}
    )
    rows = bench.contend("m", "a", contest, model, images, {"one": "x", "two": "y"}, rounds=1, seconds=60)
    assert order == ["one", "two"] * 2
    assert [(r.library, r.setting) for r in rows[:3]] == [
        ("lit_adv", ""),
        ("lit_adv", "fold=False"),
        ("lit_adv", "stop_at_success=True"),
    ]
    assert [r.seconds for r in rows] == [9.0, 9.0, 5.0, 6.0, 4.0]
    assert rows[0].forwards == rows[0].backwards == 2
    assert model.head.weight.grad is None


def test_short_calls_are_repeated_and_the_best_counts(monkeypatch):
    times = iter([3.0, 2.0, 4.0, 1.0])
    monkeypatch.setattr(bench, "timed", lambda call, device: next(times))
    assert bench.best_of(lambda: None, torch.device("cpu"), seconds=60, most=3) == 2.0
    assert bench.best_of(lambda: None, torch.device("cpu"), seconds=-1) == 1.0


def test_what_fails_is_said_and_left_out(model, images, capsys):
    def failing(model, images, labels):
        raise RuntimeError("no such thing")

    contest = contests.Contest(norm="linf", ours=lambda: attacks.FGSM(), peers={"one": failing})
    rows = bench.contend("m", "a", contest, model, images, {"one": "x"}, rounds=1, seconds=60)
    assert [r.library for r in rows] == ["lit_adv"]
    assert "left out one: RuntimeError: no such thing" in capsys.readouterr().err
    missing = contests.Contest(norm="linf", ours=lambda: attacks.NoSuchAttack())
    assert bench.contend("m", "a", missing, model, images, {}, rounds=1, seconds=60) == []
    assert "NoSuchAttack" in capsys.readouterr().err


def test_every_contest_has_an_attack_of_ours():
    table = contests.contests()
    for name, contest in table.items():
        attack = contest.ours()
        assert isinstance(attack, attacks.Attack), name
        assert contest.norm in ("linf", "l2", "l1", "l0")
        assert set(contest.peers) <= set(contests.LIBRARIES)
        for setting, made in contests.variants(attack).items():
            assert made != attack, setting
    met = {type(contest.ours()) for contest in table.values()}
    elsewhere = {"FoolboxAttack", "TorchattacksAttack", "ARTAttack"}  # are the others'
    # need more than a model and images
    fitted = {"SubstituteModel", "EnsembleTransfer", "AdversarialPatch", "GeneratedPerturbation"}
    for kind in vars(attacks).values():
        if isinstance(kind, type) and issubclass(kind, attacks.Attack) and hasattr(kind, "__dataclass_fields__"):
            assert kind in met or kind.__name__ in elsewhere | fitted, kind


def test_missing_libraries_are_said(capsys):
    assert contests.installed({"none": "no_such_module", "math": "math"}) == {"math": "math"}
    assert "without none: ModuleNotFoundError" in capsys.readouterr().err


# tables


def test_ratios():
    found = ratios(ROWS)
    assert found[:4] == [0.5, 0.25, 10.0, 0.5]
    assert math.isnan(found[4])
    assert found[5:] == [3.0, 3.0]
    assert best_peer(ROWS, ROWS[0]) is ROWS[3]
    assert best_peer(ROWS, ROWS[4]) is None
    # what breaks off early has not done the same work; what says nothing of it has been cleverer
    early = row("early", 0.5, forwards=1.0, backwards=1.6, remark="stops early")
    assert best_peer([*ROWS, early], ROWS[0]) is ROWS[3]
    assert ratios([*ROWS, early])[0] == 0.5
    for other in (replace(early, remark=""), replace(early, forwards=1.2)):
        assert best_peer([*ROWS, other], ROWS[0]) is other
        assert ratios([*ROWS, other])[0] == 0.25


def test_csv_comes_back(tmp_path):
    path = tmp_path / "rows.csv"
    write_csv(ROWS, path)
    back = read_csv(path)
    assert [str(r) for r in back] == [str(r) for r in ROWS]  # NaN is not equal to itself
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["images_per_second"] == "5"
    assert lines[2]["ratio"] == "10"


def test_markdown():
    text = markdown(ROWS)
    assert text.count("## ") == 2
    lines = [line for line in text.splitlines() if line.startswith("| ") and "library" not in line]
    assert lines[0] == "| a | **lit_adv** | 5.00 | 0.500 | 2.00 | 1.00 | 50% | 0.250 l2 |"
    assert lines[1].startswith("|  | **lit_adv** fold=False | 2.50 |")
    assert "slow (its own way)" in lines[2]
    assert lines[3] == "|  | quick | 10.0 | 0.500 | 2.00 | 1.00 | 0% | - |"
    assert "| - |" in lines[4]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [(1234.5, "1234"), (123.45, "123"), (12.345, "12.3"), (1.2345, "1.23"), (0.012345, "0.0123"), (0, "0")],
)
def test_three_digits(number, text):
    assert short(number) == text


def test_figure(tmp_path):
    drawn = figure(ROWS, "title")
    (axes,) = drawn.axes
    assert axes.get_xscale() == "log"
    # "alone" has no peer and is not drawn; "a" names those it met
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  (quick)"]
    drawn_groups = [group for group in axes.collections if group.get_label()[0] != "_"]
    points = sorted(float(x) for group in drawn_groups for x in group.get_offsets()[:, 0])
    assert points == [0.25, 0.5, 3.0]
    low, high = axes.get_xlim()
    assert low < 0.25
    assert high > 3
    drawn.savefig(tmp_path / "figure.png")
    figure([], "nothing was measured").savefig(tmp_path / "empty.png")


def test_the_whole_run(tmp_path, capsys):
    options = ["--images", "2", "--rounds", "1", "--models", "small_cnn", "--attacks", "FGSM", "--libraries"]
    bench.main([*options, "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.csv", "benchmark.md", "benchmark.png"}
    (only,) = read_csv(tmp_path / "benchmark.csv")
    assert (only.attack, only.library, only.forwards, only.backwards) == ("FGSM", "lit_adv", 1, 1)
    assert "small_cnn, random weights" in (tmp_path / "benchmark.md").read_text()
    assert "FGSM" in capsys.readouterr().out
