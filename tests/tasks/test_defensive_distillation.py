"""Distillation at a temperature: its loss, its teacher, and the lesson that it only hides gradients."""

import sys

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from lit_adv import cli
from lit_adv.attacks import FGSM, PGD, AtTemperature, CarliniWagnerL2
from lit_adv.attacks.attack import predictions
from lit_adv.data import Digits
from lit_adv.models import classifier, fingerprint, load_classifier, save_classifier
from lit_adv.tasks import DefensiveDistillation, VictimClassifier

SETTINGS = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SIZES = {"name": "small_cnn", "num_classes": 10, "image_size": 8, "in_channels": 1}


def trainer(folder, **options):
    return pl.Trainer(
        **({"max_epochs": 1, "default_root_dir": folder, "enable_checkpointing": False} | SETTINGS | options)
    )


def digits(**options):
    return Digits(**({"batch_size": 64, "image_size": 8, "train_limit": 200, "validation": 50} | options))


def teacher_file(folder, **fields):
    """A checkpoint as the task writes it, without training."""
    torch.manual_seed(1)
    task = DefensiveDistillation(**SIZES, **fields)
    run = trainer(folder, max_epochs=0)
    run.fit(task, datamodule=digits())
    run.save_checkpoint(folder / "teacher.ckpt")
    return str(folder / "teacher.ckpt"), task


def student(path, folder, **fields):
    torch.manual_seed(2)
    task = DefensiveDistillation(**(SIZES | {"teacher": path} | fields))
    trainer(folder, max_epochs=0).fit(task, datamodule=digits())
    return task


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 10


def test_the_teachers_loss_is_the_cross_entropy_at_the_temperature(batch):
    x, y = batch
    for squared, factor in ((False, 1), (True, 9)):
        task = DefensiveDistillation(**SIZES, temperature=3.0, t_squared=squared)
        task.configure_model()
        z = task.model(x).double()
        by_hand = -(z / 3 - torch.logsumexp(z / 3, 1, keepdim=True))[torch.arange(12), y].mean()
        assert task.training_loss(x, y).item() == pytest.approx(factor * by_hand.item(), rel=1e-5)


def test_the_students_loss_is_that_of_the_soft_labels(tmp_path, batch):
    x, y = batch
    path, _ = teacher_file(tmp_path)
    for squared, factor in ((False, 1), (True, 1600)):
        task = student(path, tmp_path, t_squared=squared)
        with torch.no_grad():
            p = (load_classifier(path)(x) / 40).exp().double()
            p /= p.sum(1, keepdim=True)
            q = (task.model(x) / 40).double().log_softmax(1)
        torch.testing.assert_close(task.soft_labels(x).double(), p, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(task.soft_labels(x).sum(1), torch.ones(12))
        assert task.training_loss(x, y).item() == pytest.approx(-factor * (p * q).sum(1).mean().item(), rel=1e-5)
        assert task.training_loss(x, y.flip(0)).item() == task.training_loss(x, y).item()  # hard labels are not used


def test_the_teacher_is_frozen_and_in_nothing_that_is_kept(tmp_path):
    path, _ = teacher_file(tmp_path)
    task = student(path, tmp_path)
    teacher, before = task.teacher, fingerprint(load_classifier(path))
    own = {id(parameter) for group in task.parameter_groups() for parameter in group["params"]}
    assert own == {id(parameter) for parameter in task.model.parameters()}
    assert not own & {id(parameter) for parameter in teacher.parameters()}
    assert not any("teacher" in key for key in task.state_dict())
    assert {key.split(".")[0] for key in task.state_dict()} == {"model"}
    task.train()
    assert not teacher.training
    run = trainer(tmp_path, max_epochs=2)
    start = fingerprint(task.model)
    run.fit(task, datamodule=digits())
    assert fingerprint(teacher) == before
    assert fingerprint(task.model) != start
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    run.save_checkpoint(tmp_path / "student.ckpt")
    (tmp_path / "teacher.ckpt").unlink()
    # what is kept needs no teacher and no temperature
    assert fingerprint(load_classifier(tmp_path / "student.ckpt")) == fingerprint(task.model)
    again = DefensiveDistillation.load_from_checkpoint(tmp_path / "student.ckpt", weights_only=True)
    assert trainer(tmp_path).test(again, datamodule=digits(test_limit=30), verbose=False)[0]["test/acc"] >= 0


def test_soft_labels_are_computed_in_eval_mode(tmp_path, batch):
    sizes = SIZES | {"name": "resnet20"}
    torch.manual_seed(0)
    model = classifier(**sizes)
    save_classifier(model, tmp_path / "teacher.safetensors")
    task = student(str(tmp_path / "teacher.safetensors"), tmp_path, name="resnet20")
    task.train()
    expected = (model.eval()(batch[0]) / 40).softmax(1)
    torch.testing.assert_close(task.soft_labels(batch[0]), expected)
    assert not torch.allclose((model.train()(batch[0]) / 40).softmax(1), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_teacher_answers_in_its_own_precision(tmp_path, batch, dtype):
    path, _ = teacher_file(tmp_path)
    task, x = student(path, tmp_path), batch[0].to(torch.bfloat16)
    with torch.no_grad():
        expected = (load_classifier(path)(x.float()) / 40).softmax(1)
    task.to(dtype)
    # both of the trainer's ways: weights in another precision, and autocast
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        torch.testing.assert_close(task.soft_labels(x.to(dtype)), expected, rtol=0, atol=0)
        assert task.training_loss(x.to(dtype), batch[1]).isfinite()


def test_what_is_refused(tmp_path):
    for t in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="DefensiveDistillation: temperature must be above 0 and finite"):
            DefensiveDistillation(**SIZES, temperature=t)
    with pytest.raises(ValueError, match="label_smoothing must be 0 with a teacher"):
        DefensiveDistillation(**SIZES, teacher="x.ckpt", label_smoothing=0.1)
    missing = tmp_path / "runs" / "checkpoints" / "best.ckpt"
    with pytest.raises(FileNotFoundError, match=rf"no teacher .*--model.teacher=null --run_dir={tmp_path / 'runs'}"):
        student(str(missing), tmp_path)
    path, _ = teacher_file(tmp_path)
    with pytest.raises(ValueError, match=r"at the student's temperature, got 20 and a teacher of 40"):
        student(path, tmp_path, temperature=20.0)
    with pytest.raises(ValueError, match=r"of the teacher's architecture, got name resnet20 .* small_cnn"):
        student(path, tmp_path, name="resnet20")
    plain = VictimClassifier(**SIZES)
    run = trainer(tmp_path, max_epochs=0)
    run.fit(plain, datamodule=digits())
    run.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"got 40 and a teacher of 1 \(train it with --model.teacher=null"):
        student(str(tmp_path / "plain.ckpt"), tmp_path)


def test_two_commands_make_a_student(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning", *arguments, "--trainer.accelerator=cpu"])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    few = ["--data.train_limit=60", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    job = "configs/digits/distillation"
    code, _, err = run("fit", "--config", f"{job}.yaml", *few)
    assert code
    assert "--model.teacher=null --run_dir=runs/digits/distillation_teacher" in err
    for config in (f"{job}_teacher.yaml", f"{job}.yaml"):
        code, out, err = run("fit", "--config", config, *few)
        assert not code, err
        assert "best checkpoint" in out


def learnt(task, x, y, steps, rate=1e-2):
    """The task's network after so many steps of Adam, 50 images each."""
    optimizer = torch.optim.Adam(task.parameter_groups(), lr=rate)
    for step in range(steps):
        rows = torch.arange(50) + 50 * step
        optimizer.zero_grad()
        task.training_loss(x[rows % len(x)], y[rows % len(x)]).backward()
        optimizer.step()
    return task.model.eval()


def test_the_lesson(tmp_path):
    """FGSM and PGD at T = 1 all but stand still; on Z / T, on the margin and by CW the student falls as any other."""
    path, teacher = teacher_file(tmp_path)
    data = digits(train_limit=500, validation=0, test_limit=60)
    data.setup()
    x, y = data.train_dataset.batch(range(500))
    learnt(teacher, x, y, 150)
    task = student(path, tmp_path)
    task.teacher.load_state_dict(teacher.model.state_dict())
    model = learnt(task, x, y, 150)
    x, y = data.test_dataset.batch(range(60))
    right = predictions(model, x) == y
    assert float(right.float().mean()) > 0.9
    x, y = x[right], y[right]
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
    assert float((gradient == 0).float().mean()) > 0.5
    robust = {
        name: float(1 - attack.run(model, x, y, seed=0).success.float().mean())
        for name, attack in {
            "fgsm": FGSM(eps=48 / 255),
            "pgd": PGD(eps=48 / 255, step_size=6 / 255, steps=20),
            "fgsm at T": AtTemperature(attack=FGSM(eps=48 / 255)),
            "margin": PGD(eps=48 / 255, step_size=6 / 255, steps=20, objective="margin"),
            "cw": CarliniWagnerL2(c=1.0, learning_rate=0.05, steps=40, search_steps=2),
        }.items()
    }
    print(robust)
    assert robust["fgsm"] > 0.7
    assert robust["pgd"] > 0.6
    assert robust["fgsm at T"] < robust["fgsm"] - 0.3
    assert robust["margin"] < 0.2
    assert robust["cw"] < 0.05
