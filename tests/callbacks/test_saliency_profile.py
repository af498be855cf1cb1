"""SaliencyProfile: profiles put together image by image, from both kinds of data, on one process and on two."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import InputSaliency, SaliencyProfile, input_saliency, saliency_profile
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule
from lit_adv.explain import filter_layers, heat_map, parameter_saliency
from lit_adv.explain import input_saliency as maps_of
from lit_adv.metrics import SaliencyStatistics
from lit_adv.models import Classifier, fingerprint

# without random numbers, which depend on the seeds that the data module mixes
ATTACKS = {
    "pgd/4": PGD(eps=0.1, step_size=0.05, steps=2, random_start=False),
    "pgd/8": PGD(norm="l2", eps=4, step_size=2, steps=2, random_start=False),
    "fgsm": FGSM(eps=0.2),
}


def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier("small_cnn", 3, 8, 3).eval()


def images(count, seed):
    """Random images; the first network is right on two of three, the second one on the others."""
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    x = (x * 255).round() / 255
    with torch.no_grad():
        first, second = (network(seed)(x).argmax(1) for seed in range(2))
    return TensorDataset(x, torch.where(torch.arange(count) % 3 == 2, second, first))


class Source(pl.LightningDataModule):
    """Random images in three classes."""

    num_classes, image_size, in_channels = 3, 8, 3

    def test_dataloader(self):
        return DataLoader(images(11, 0), batch_size=4)

    def val_dataloader(self):
        return DataLoader(images(9, 1), batch_size=4)


class Task(pl.LightningModule):
    """A classifier that is tested without a number of its own."""

    def __init__(self):
        super().__init__()
        self.net = network(0)

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        return None


def adversarial():
    victims = {"first": network(0), "second": network(1)}
    # rounding to 8 bits would enlarge what a batch changes in the last bit
    return AdversarialDataModule(Source(), victims, ATTACKS, eval_batch_size=5, quantise="none")


def statistics(model):
    x, y = images(9, 1).tensors
    raw = torch.cat([parameter_saliency(model, *pair) for pair in zip(x.split(1), y.split(1), strict=True)]).double()
    # a filter behind an activation that is always 0 has no deviation
    return raw.mean(0), torch.where(raw.std(0) > 1e-14, raw.std(0), 1.0)


def expected(model, attack):
    """Numbers and curves of one attack, put together image by image; None: of the clean images."""
    mean, std = statistics(model)
    sizes, profiles = list(filter_layers(model).values()), []
    for x, y in zip(*(part.split(1) for part in images(11, 0).tensors), strict=True):
        before = model(x).argmax(1)
        made = x if attack is None else attack(model, x, before, seed=0)
        if before == y and (attack is None or model(made).argmax(1) != y):
            profiles.append((parameter_saliency(model, made, y)[0].double() - mean) / std)
    if not profiles:
        return {"images": 0}
    rows = torch.stack(profiles)
    ordered = torch.cat([part.sort(1, descending=True).values for part in rows.split(sizes, 1)], 1)
    shares = torch.stack([part.clamp(min=0).sum() for part in rows.split(sizes, 1)])
    third = max(1, round(len(sizes) / 3))
    return {
        "images": len(rows),
        "mean": float(rows.mean()),
        "first_third": float(shares[:third].sum() / shares.sum()),
        "last_third": float(shares[-third:].sum() / shares.sum()),
        "curve": ordered.mean(0).tolist(),
        "absolute": sorted(rows.abs().mean(0)[: sizes[0]].tolist(), reverse=True),
    }


def read(folder):
    with (folder / "saliency_profile.csv").open() as file:
        rows = {(row["attack"], row["victim"]): row for row in csv.DictReader(file)}
    content = json.loads((folder / "saliency_profile.json").read_text())
    return rows, {(row["attack"], row["victim"]): row for row in content["attacks"]}, content


def check(row, full, wanted):
    assert int(row["images"]) == wanted["images"] == full["images"]
    if not wanted["images"]:
        assert row["mean"] == row["first_third"] == ""
        return
    for name in ("mean", "first_third", "last_third"):
        assert float(row[name]) == pytest.approx(wanted[name], rel=1e-3, abs=1e-4), name
    assert full["signed"]["sort_then_mean"] == pytest.approx(wanted["curve"], rel=1e-3, abs=1e-3)
    first = len(wanted["absolute"])
    assert full["absolute"]["mean_then_sort"][:first] == pytest.approx(wanted["absolute"], rel=1e-3, abs=1e-3)


def test_every_attack_of_the_data_module_on_every_victim(tmp_path: Path, trainer, capsys) -> None:
    logged = {}

    class Log(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    callback = SaliencyProfile()
    task = Task()
    trainer(callback, logger=Log(tmp_path)).test(task, adversarial())
    rows, full, content = read(tmp_path)
    keys = ["clean", *ATTACKS]
    assert list(rows) == [(key, victim) for victim in ("first", "second") for key in keys]
    for (key, victim), row in rows.items():
        model = network(0 if victim == "first" else 1)
        check(row, full[key, victim], expected(model, ATTACKS.get(key)))
    assert 0 < int(rows["fgsm", "first"]["images"]) < 11
    assert int(rows["clean", "first"]["images"]) == 8
    assert logged["saliency/first/clean/last_third"] == pytest.approx(float(rows["clean", "first"]["last_third"]))
    assert content["victims"]["first"]["layers"] == filter_layers(network(0))
    assert content["victims"]["first"]["validation_images"] == 9
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "saliency_profile_first.png",
        "saliency_profile_second.png",
    }
    out = capsys.readouterr().out
    assert "Saliency in standard deviations" in out
    assert all(parameter.grad is None for parameter in task.parameters())
    # an earlier run's statistics, and another network's
    path = tmp_path / "saliency" / "second.safetensors"
    mean, std = statistics(network(1))
    kept = SaliencyStatistics.load(path, fingerprint(network(1))).compute()
    torch.testing.assert_close(kept["mean"], mean, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(kept["std"], std, rtol=1e-4, atol=1e-9)
    (tmp_path / "saliency" / "first.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="belongs to a network of other weights"):
        trainer(SaliencyProfile(statistics_dir=str(tmp_path / "saliency"))).test(Task(), adversarial())


def test_named_attacks_on_pairs_of_images_and_labels(tmp_path: Path, trainer, monkeypatch) -> None:
    drawn, computed = [], []
    draw, compute = saliency_profile.profile_figure, SaliencyProfile._validation
    monkeypatch.setattr(saliency_profile, "profile_figure", lambda *args: drawn.append(args) or draw(*args))
    heat = input_saliency.heat_map_figure
    monkeypatch.setattr(input_saliency, "heat_map_figure", lambda *args: drawn.append(args) or heat(*args))
    monkeypatch.setattr(SaliencyProfile, "_validation", lambda *args: computed.append(1) or compute(*args))
    monkeypatch.setattr(InputSaliency, "_validation", lambda *args: pytest.fail("computed a second time"))
    profile = SaliencyProfile(ATTACKS, shown=["fgsm", "clean"], share_y=False, absolute=True, order="mean_then_sort")
    both = [profile, InputSaliency(ATTACKS, examples=[3, 1, 20], n=5, shown=["clean", "fgsm"])]
    trainer(*both).test(Task(), Source())
    rows, full, _ = read(tmp_path)
    assert list(rows) == [(key, "") for key in ("clean", *ATTACKS)]
    for (key, _), row in rows.items():
        check(row, full[key, ""], expected(network(0), ATTACKS.get(key)))
    assert computed == [1]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "input_saliency.png",
        "saliency_profile.png",
    ]
    (profiles, layers, share_y, absolute, title), (examples, attacks, _) = sorted(drawn, key=len, reverse=True)
    assert list(profiles) == ["fgsm", "clean"]
    assert profiles["fgsm"].curve == full["fgsm", ""]["absolute"]["mean_then_sort"]
    assert (layers, share_y, absolute) == (list(filter_layers(network(0)).values()), False, True)
    assert title == "Parameter saliency: Task, absolute, mean then sort"
    assert list(examples) == ["image 3", "image 1"]
    assert attacks == ["clean", "fgsm"]
    # the map of one image, by itself
    model, (x, y) = network(0), (part[1:2] for part in images(11, 0).tensors)
    found = SaliencyStatistics(filter_layers(model))
    found.update(parameter_saliency(model, *images(9, 1).tensors))
    made = ATTACKS["fgsm"](model, x, model(x).argmax(1))
    wanted = heat_map(maps_of(model, made, y, found, n=5))[0]
    shown = examples["image 1"]["fgsm"]
    torch.testing.assert_close(shown.image, made[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(shown.heat, wanted, rtol=0, atol=1e-2)
    after = int(model(made).argmax(1))
    assert shown.caption == ("right" if after == int(y) else f"taken for {after}")
    assert shown.name == f"class {int(y)}"


def test_filters_that_clean_images_do_not_need_are_named_and_can_be_lifted(tmp_path: Path, trainer, capsys) -> None:
    model, folder = Task(), tmp_path / "given"
    folder.mkdir()
    statistics = SaliencyStatistics(filter_layers(model), fingerprint(model))
    statistics.update(parameter_saliency(model, *images(9, 1).tensors))
    live = int(statistics.compute()["spread"].argmax())
    statistics.moments[1:, live] *= 1e-12
    statistics.save(folder / "model.safetensors")
    shown = {}
    for floor in (0.0, 0.01):
        profile = SaliencyProfile({"fgsm": FGSM(eps=0.2)}, statistics_dir=str(folder), floor=floor)
        trainer(profile).test(model, Source())
        shown[floor] = " ".join(capsys.readouterr().out.split())
        content = json.loads((tmp_path / "saliency_profile.json").read_text())
        assert content["floor"] == floor
        shown[floor, "mean"] = next(each["mean"] for each in content["attacks"] if each["attack"] == "fgsm")
    assert "filters hardly ever matter on clean images, and make up to 100 % of a profile: set floor" in shown[0.0]
    assert shown[0.0, "mean"] > 100 * abs(shown[0.01, "mean"])


def test_maps_of_the_data_modules_images(tmp_path: Path, trainer, monkeypatch) -> None:
    drawn = []
    heat = input_saliency.heat_map_figure
    monkeypatch.setattr(input_saliency, "heat_map_figure", lambda *args: drawn.append(args) or heat(*args))
    trainer(InputSaliency(examples=[6])).test(Task(), adversarial())
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "input_saliency_first.png",
        "input_saliency_second.png",
    ]
    for examples, attacks, _ in drawn:
        assert list(examples) == ["image 6"]
        assert list(examples["image 6"]) == attacks == ["clean", *ATTACKS]
        torch.testing.assert_close(examples["image 6"]["clean"].image, images(11, 0).tensors[0][6])


def test_data_that_do_not_fit(trainer) -> None:
    with pytest.raises(ValueError, match=r"SaliencyProfile: attacks must come either .* got both"):
        trainer(SaliencyProfile(ATTACKS)).test(Task(), adversarial())
    with pytest.raises(ValueError, match=r"InputSaliency: attacks must come either .* got neither"):
        trainer(InputSaliency()).test(Task(), Source())
    with pytest.raises(ValueError, match="the data must be a data module with a validation set"):
        trainer(SaliencyProfile(ATTACKS)).test(Task(), Source().test_dataloader())
    with pytest.raises(ValueError, match=r"shown must be attacks \(clean, pgd/4, pgd/8, fgsm\), got 'bim'"):
        trainer(SaliencyProfile(ATTACKS, shown=["bim"])).test(Task(), Source())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (SaliencyProfile, {"attacks": {}}, "SaliencyProfile: attacks must be at least one attack by name"),
        (SaliencyProfile, {"attacks": {"clean": FGSM(eps=0.1)}}, "attacks must have other names than clean"),
        (SaliencyProfile, {"order": "sorted"}, "order must be one of sort_then_mean, mean_then_sort, got 'sorted'"),
        (SaliencyProfile, {"chunk_size": 0}, "SaliencyProfile: chunk_size must be at least 1, got 0"),
        (SaliencyProfile, {"floor": 1.5}, r"SaliencyProfile: floor must be in \[0, 1\], got 1.5"),
        (InputSaliency, {"examples": [1, 1]}, "examples must be different positions >= 0"),
        (InputSaliency, {"n": 0}, "n must be at least 1 and boost at least 0, got 0"),
        (InputSaliency, {"channel": "max"}, "channel must be abs_then_max or max_then_abs, got 'max'"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    for devices in (1, 2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
            environment.pop(variable, None)
        command = [sys.executable, __file__, str(tmp_path / str(devices)), str(devices)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    # 11 plain pairs on two processes: Lightning's sampler gives one of them twice
    for folder in ("", "pairs"):
        (_, one, first), (_, two, second) = (read(tmp_path / name / folder) for name in ("1", "2"))
        assert first["victims"] == second["victims"]
        for key, row in one.items():
            for name in ("images", "mean", "first_third", "last_third", "layers"):
                assert two[key][name] == pytest.approx(row[name], rel=1e-4, abs=1e-4), name
            for kind in ("signed", "absolute"):
                for order, curve in row[kind].items():
                    assert two[key][kind][order] == pytest.approx(curve, rel=1e-3, abs=1e-3)
    # whichever process had the images
    names = [sorted(path.name for path in (tmp_path / name / "figures").iterdir()) for name in ("1", "2")]
    assert names[0] == names[1]
    assert len(names[0]) == 4


def main(folder, devices):
    """A test run on so many processes, called by the test above."""
    torch.set_num_threads(1)
    for name, data, callbacks in (
        ("", adversarial(), [SaliencyProfile(), InputSaliency(examples=[0, 5])]),
        ("pairs", Source(), [SaliencyProfile(ATTACKS)]),
    ):
        pl.Trainer(
            accelerator="cpu",
            devices=int(devices),
            strategy="ddp" if int(devices) > 1 else "auto",
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=f"{folder}/{name}",
        ).test(Task(), data, verbose=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
