"""A folder of pictures through a checkpoint: nothing is fatal, every file has its row, on one rank as on two."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import IdentificationWriter
from PIL import Image

from lit_adv import cli
from lit_adv.attacks import FGSM
from lit_adv.data import AdversarialDataModule, Arrays, PictureFolder, read_picture
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL
from lit_adv.tasks.identification import NOT_CALIBRATED, identify

DRAWS = np.random.default_rng(0)
PIXELS = DRAWS.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a network of 3 channels, trained for one epoch on 8 x 8 pixels, and calibrated."""
    folder = tmp_path_factory.mktemp("run")
    draws = np.random.default_rng(1)
    sets = {f"x_{k}": draws.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for k, n in (("train", 24), ("test", 3))}
    np.savez(folder / "images.npz", **sets, y_train=np.arange(24) % 3, y_test=np.arange(3))
    torch.manual_seed(0)
    data = AdversarialDataModule(
        Arrays(path=folder / "images.npz", validation=8), {"a": Classifier("small_cnn", 3, 8)}, {"fgsm": FGSM(eps=0.2)}
    )
    task = REDRL(width=4, blocks=1, recognizer="small", weight_features=0.0, coverage=0.5)
    run = quiet(folder)
    run.fit(task, datamodule=data)
    run.save_checkpoint(folder / "redrl.ckpt")
    return folder / "redrl.ckpt"


def quiet(folder, *callbacks, **changes):
    fields = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    fields |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**fields, **changes})


@pytest.fixture
def folder(tmp_path):
    """Five good pictures of three sizes, and five files that are none."""
    place = tmp_path / "pictures"
    (place / "sub").mkdir(parents=True)
    for number, pixels in enumerate(PIXELS[:3]):
        Image.fromarray(pixels).save(place / f"{number}.png")
    Image.fromarray(PIXELS[3][..., 0]).save(place / "grey.png")
    Image.fromarray(np.tile(PIXELS[4], (3, 2, 1))).save(place / "sub" / "photo.jpg", quality=90)
    whole = (place / "0.png").read_bytes()
    (place / "broken.png").write_bytes(whole[: len(whole) // 2])
    (place / "text.png").write_text("a text")
    (place / "notes.txt").write_text("a text")
    Image.fromarray(np.zeros((4100, 4100), np.uint8)).save(place / "huge.png")
    Image.fromarray(PIXELS[0]).save(os.fsencode(place) + b"/odd\xff.png")
    return place


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def expected(checkpoint, path):
    image = read_picture(path)[None] / 255
    return identify(REDRL.load_from_checkpoint(checkpoint), image)


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys):
    """`lightning predict` in this process; returns code, output and the folder that it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def predict(*arguments):
        few = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        monkeypatch.setattr(sys, "argv", ["lightning", "predict", *map(str, (*arguments, *few))])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        made = sorted(Path("runs").glob("identify/*/identify")) if Path("runs").is_dir() else []
        return code, out, err, made[-1] if made else None

    return predict


def test_a_folder_and_a_checkpoint_are_enough(predict, checkpoint, folder):
    code, out, err, made = predict(
        "--config", "configs/identify.yaml", "--ckpt_path", checkpoint, "--data.path", folder
    )
    assert code == 0, err
    rows = table(made / "identified.csv")
    assert len(rows) == 10
    unread = {name: row["note"] for name, row in rows.items() if row["verdict"] == "not read"}
    assert unread.keys() == {"broken.png", "text.png", "notes.txt", "huge.png"}
    assert unread["notes.txt"] == "not a picture (ending .txt)"
    assert unread["huge.png"].startswith("16,810,000 pixels are more than max_pixels")
    assert unread["broken.png"].startswith("damaged or no picture")
    assert rows["grey.png"]["note"] == "grey"
    assert (rows["sub/photo.jpg"]["width"], rows["sub/photo.jpg"]["height"]) == ("16", "24")
    assert rows["sub/photo.jpg"]["format"] == "JPEG"
    assert rows["odd\\udcff.png"]["verdict"] == rows["0.png"]["verdict"]
    for name in ("0.png", "1.png", "2.png", "grey.png", "sub/photo.jpg"):
        wanted = expected(checkpoint, folder / name)
        assert rows[name]["verdict"] == wanted.verdicts[0]
        assert rows[name]["most_likely"] == wanted.most_likely[0]
        assert float(rows[name]["residual_energy"]) == pytest.approx(wanted.residual_energy.item(), rel=1e-4)
        found = [float(rows[name][f"p_{kind}"]) for kind in ("clean", "fgsm")]
        assert found == pytest.approx(wanted.probabilities[0].tolist(), abs=1e-5)
        assert float(rows[name]["probability"]) == max(found)
        made_of = torch.tensor(np.array(Image.open(made / "reconstructions" / f"{name}.png"))).permute(2, 0, 1)
        assert (made_of - 255 * wanted.reconstructed[0]).abs().max() <= 0.51
        shown = torch.tensor(np.array(Image.open(made / "residuals" / f"{name}.png"))).permute(2, 0, 1)
        assert (shown - 255 * (0.5 + 8 * wanted.residual[0]).clamp(0, 1)).abs().max() <= 0.51
    # half of the validation images were to be unknown
    assert any(row["verdict"] == "unknown" for row in rows.values())

    stored = json.loads((made / "identified.json").read_text())
    assert stored["classes"] == ["clean", "fgsm"]
    assert stored["calibration"]["coverage"] == 0.5
    assert [row["verdict"] for row in stored["files"]] == [row["verdict"] for row in rows.values()]
    assert "Identified, 10 files" in out
    assert "not read: 4" in out
    assert f"table: {made.absolute() / 'identified.csv'}" in out
    assert f"residuals: {made.absolute() / 'residuals'}" in out
    assert "broken.png" in out
    assert "the predictions were not kept" not in out
    assert all(len(line) <= 80 for line in out[out.index("Identified") : out.index("table:")].splitlines())


def test_a_checkpoint_without_calibration_says_so(predict, checkpoint, folder, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["calibration"] = None
    torch.save(content, tmp_path / "old.ckpt")
    code, out, err, made = predict(
        "--config", "configs/identify.yaml", "--ckpt_path", "old.ckpt", "--data.path", folder
    )
    assert code == 0, err
    assert NOT_CALIBRATED in " ".join(out.split())
    stored = json.loads((made / "identified.json").read_text())
    assert stored["calibration"] is None
    assert stored["note"] == NOT_CALIBRATED
    assert not any(row["verdict"] == "unknown" for row in stored["files"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.path=nowhere"], "PictureFolder: path 'nowhere' does not exist (--data.path FOLDER)"),
        (["--data.path=empty"], "PictureFolder: path 'empty' has no pictures: it is empty"),
        ([], "data.path must be given, PictureFolder needs it (--data.path=VALUE)"),
        (["--data.path=empty", "--data.batch_size=0"], "PictureFolder: batch_size must be at least 1, got 0"),
        (["--data.path=pictures", "--model.width=9"], "model.init_args.width is 4 in the checkpoint and 9 now"),
    ],
)
def test_what_the_user_can_mend_is_said_before_any_work(predict, checkpoint, folder, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    content = torch.load(checkpoint, weights_only=True)
    arguments_of = {"class_path": "lit_adv.tasks.REDRL", "init_args": dict(content["hyper_parameters"])}
    torch.save({**content, "config": {"model": arguments_of}}, tmp_path / "a.ckpt")
    code, out, err, _ = predict("--config", "configs/identify.yaml", "--ckpt_path", "a.ckpt", *arguments)
    assert code == 2
    assert message in err
    assert "Restoring" not in err
    assert "predict:" not in out


def test_the_true_perturbation_is_refused_before_any_work(predict, checkpoint, folder, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["inputs"] = "delta"
    torch.save(content, tmp_path / "delta.ckpt")
    code, _, err, _ = predict("--config", "configs/identify.yaml", "--ckpt_path=delta.ckpt", "--data.path", folder)
    assert code == 2
    assert 'inputs="delta" cannot identify an image' in err


def test_on_top_of_a_run_s_config_into_its_folder(predict, checkpoint, folder, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    content = torch.load(checkpoint, weights_only=True)
    # as a run keeps its config: null for what it found in its data
    fields = {"num_attacks": None, "in_channels": None}
    content["config"] = {"model": {"class_path": "lit_adv.tasks.REDRL", "init_args": fields}}
    torch.save(content, tmp_path / "run" / "checkpoints" / "best.ckpt")
    (tmp_path / "run" / "config.yaml").write_text(
        "run_dir: run\n"
        "model: {class_path: REDRL, init_args: {width: 4, blocks: 1, recognizer: small, weight_features: 0, "
        "num_attacks: null, in_channels: null}}\n"
        "data: {class_path: AdversarialDataModule, init_args: {source: Digits, victims: {}, attacks: {}}}\n"
        "trainer: {callbacks: [{class_path: ConfusionMatrix}]}\n"
    )
    both = ["--config", "run/config.yaml", "--config", "configs/identify.yaml", "--ckpt_path", "best"]
    for name in ("identify", "identify-2"):  # the second time beside the first
        code, _, err, _ = predict(*both, "--data.path", folder)
        assert code == 0, err
        assert len(table(tmp_path / "run" / name / "identified.csv")) == 10


def test_a_network_that_sees_the_image_alone_writes_tables(folder, tmp_path):
    torch.manual_seed(0)
    task = REDRL(inputs="image", recognizer="small", num_attacks=2, in_channels=3)
    task.attack_classes = ["clean", "pgd"]
    quiet(tmp_path, IdentificationWriter()).predict(task, PictureFolder(str(folder)), return_predictions=False)
    made = tmp_path / "identify"
    assert sorted(path.name for path in made.iterdir()) == ["identified.csv", "identified.json"]
    assert table(made / "identified.csv")["0.png"]["residual_energy"] == ""


def test_heads_have_columns(folder, tmp_path):
    torch.manual_seed(0)
    fields = {"width": 4, "blocks": 1, "recognizer": "small", "num_attacks": 3, "in_channels": 3, "num_victims": 2}
    task = REDRL(**fields, heads=("budget", "victim"))
    task.attack_classes, task.trained_victims = ["clean", "pgd", "cw"], ["one", "other"]
    task.configure_model()
    task.attribution.bounded[:] = torch.tensor([False, True, False])
    for likely, name in enumerate(task.attack_classes):
        with torch.no_grad():
            task.psi.head[-1].bias.copy_(20.0 * (torch.arange(3) == likely))
        run = quiet(tmp_path / name, IdentificationWriter())
        run.predict(task, PictureFolder(str(folder)), return_predictions=False)
        found = identify(task, read_picture(folder / "0.png")[None] / 255)
        made = tmp_path / name / "identify"
        row, unread = (table(made / "identified.csv")[file] for file in ("0.png", "notes.txt"))
        assert unread["victim"] == unread["victim_probability"] == unread["budget"] == ""
        assert row["victim"] == ("" if name == "clean" else found.attacked[0])
        sure = float(found.victim_probabilities.max())
        assert row["victim_probability"] == "" if name == "clean" else float(row["victim_probability"]) > 0.5
        assert name == "clean" or float(row["victim_probability"]) == pytest.approx(sure, rel=1e-4)
        assert (row["budget"] == "") == (name != "pgd")
        assert name != "pgd" or float(row["budget"]) == pytest.approx(float(found.budgets[0]), rel=1e-4)
        assert json.loads((made / "identified.json").read_text())["heads"] == ["budget", "victim"]


def test_a_picture_that_cannot_be_written_is_said(predict, checkpoint, folder):
    """Its name plus .png is longer than a file system takes, or a folder has it."""
    long = "n" * 250 + ".png"
    for name in (long, "taken.png", "taken.png.png/inside.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS[3][..., 0]).save(folder / name)
    code, _, err, made = predict("--config", "configs/identify.yaml", "--ckpt_path", checkpoint, "--data.path", folder)
    assert code == 0, err
    rows = table(made / "identified.csv")
    assert rows[long]["verdict"] == rows["grey.png"]["verdict"]
    assert rows[long]["note"] == "grey, pictures not written: File name too long"
    both = {rows[name]["note"] for name in ("taken.png", "taken.png.png/inside.png")}
    assert len(both) == 2
    assert "grey" in both
    assert (made / "residuals" / "grey.png.png").is_file()


def test_what_was_not_shown_is_said(checkpoint, folder, tmp_path):
    task = REDRL.load_from_checkpoint(checkpoint)
    run = quiet(tmp_path, IdentificationWriter(pictures=False), limit_predict_batches=1)
    run.predict(task, PictureFolder(str(folder), batch_size=1), return_predictions=False)
    rows = table(tmp_path / "identify" / "identified.csv")
    assert rows["1.png"]["note"] == "not looked at (trainer.limit_predict_batches?)"
    assert not (tmp_path / "identify" / "residuals").exists()


def test_other_data_are_refused(checkpoint, tmp_path):
    task = REDRL.load_from_checkpoint(checkpoint)
    loader = torch.utils.data.DataLoader([torch.zeros(3, 8, 8)])
    with pytest.raises(TypeError, match="IdentificationWriter: data must be a PictureFolder, got NoneType"):
        quiet(tmp_path, IdentificationWriter()).predict(task, loader)


@pytest.mark.parametrize(("field", "value"), [("scale", 0), ("shown", 0)])
def test_bad_fields_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"IdentificationWriter: {field} must be"):
        IdentificationWriter(**{field: value})


@pytest.mark.slow
def test_two_ranks_write_one_table(predict, checkpoint, folder, tmp_path):
    arguments = ["--config", "configs/identify.yaml", "--ckpt_path", checkpoint, "--data.path", folder]
    assert predict(*arguments, "--run_dir=one")[0] == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    command = [sys.executable, "-m", "lit_adv", "predict", *map(str, arguments), "--run_dir=two"]
    finished = subprocess.run(
        [*command, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("Identified, 10 files") == 1
    one, two = (table(tmp_path / name / "identify" / "identified.csv") for name in ("one", "two"))
    assert list(one) == list(two)
    for name, row in one.items():
        assert row["verdict"] == two[name]["verdict"]
        assert row["note"] == two[name]["note"]
        assert float(row["p_fgsm"] or 0) == pytest.approx(float(two[name]["p_fgsm"] or 0), abs=1e-6)
    assert not list(tmp_path.glob("two/identify-*"))
    files = [sorted(p.name for p in (tmp_path / name / "identify").rglob("*.png")) for name in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) == 12
