"""Callbacks that draw what a network sees: figures and files, on both kinds of data, on one process and on two."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import (
    ActivationGrid,
    ActivationMaximization,
    BoundaryGeometry,
    ClassConnectedness,
    DecisionRegions,
    DominantLabels,
    FeatureSpace,
    FilterGrid,
    GradientMaps,
    OcclusionMap,
    TopPatches,
    activation_maximization,
    feature_space,
    gradient_maps,
    occlusion_map,
)
from lit_adv.callbacks.shown_images import ShownImages
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import Digits
from lit_adv.explain import features, nearest_neighbors, pca, top_patches, tsne
from lit_adv.explain import occlusion_map as maps_of
from lit_adv.models import Classifier

ATTACKS = {"pgd": PGD(eps=0.2, step_size=0.1, steps=3), "fgsm": FGSM(eps=0.2)}


class Task(pl.LightningModule):
    def __init__(self, channels=3, name="small_cnn"):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = Classifier(name, 3, 8, channels)

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        return None


def images(count=23, channels=3):
    x = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.arange(count) % 3)


class Source(pl.LightningDataModule):
    classes = ("cat", "a very long name of a class", "dog")

    def test_dataloader(self):
        return DataLoader(images(), batch_size=4)


def all_callbacks():
    return [
        FilterGrid(scale="each"),
        ActivationGrid(channels=5, images=2),
        TopPatches(k=3, images=20, batch_size=6),
        OcclusionMap(size=3, fill="mean", images=2),
        GradientMaps(maps=["guided", "saliency", "grad_cam_plus_plus", "deconvnet"], explain="label", images=2),
        ActivationMaximization(presets=["decay_blur"], steps=4),
        FeatureSpace(ATTACKS, images=20, batch_size=6, queries=1),
    ]


NAMES = {
    "filters",
    "activations_net.network.features.0",
    "activations_net.network.features.3",
    "activations_net.network.features.6",
    "top_patches",
    "occlusion",
    "gradient_maps",
    "activation_maximization",
    "feature_space",
    "feature_neighbors",
}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_of_them_on_any_task(tmp_path, trainer):
    task = Task().train()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    trainer(*all_callbacks(), inference_mode=True, logger=logger).test(task, Source(), verbose=False)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == NAMES
    for path in (tmp_path / "figures").iterdir():
        # ink: at least a twentieth of the paper is not white
        assert (
            torch.tensor(list(Image.open(path).convert("L").resize((200, 200)).tobytes())) < 250
        ).float().mean() > 0.05
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in task.modules())
    assert all(parameter.grad is None for parameter in task.parameters())
    x, y = (part[:20] for part in images().tensors)
    # the patches are those of the function, by position in the test set
    found = top_patches(task, [x], "net.network.features.3", range(8), k=3)
    stored = rows(tmp_path / "top_patches.csv")
    assert [int(row["image"]) for row in stored] == found.images.flatten().tolist()
    assert [float(row["activation"]) for row in stored] == pytest.approx(found.values.flatten().tolist(), rel=1e-4)
    assert [[int(row[name]) for name in ("top", "left", "bottom", "right")] for row in stored] == found.boxes.flatten(
        0, 1
    ).tolist()
    # and so are the points
    labels = task(x).argmax(1)
    points = torch.cat(
        [features(task, x), *(features(task, each(task, x, labels, seed=0)) for each in ATTACKS.values())]
    )
    stored = rows(tmp_path / "feature_space.csv")
    assert [row["kind"] for row in stored] == ["clean"] * 20 + ["pgd"] * 20 + ["fgsm"] * 20
    assert [int(row["image"]) for row in stored] == [*range(20)] * 3
    assert [int(row["label"]) for row in stored] == y.tolist() * 3
    scores = pca(points, 2).scores
    torch.testing.assert_close(
        torch.tensor([float(row["pca_1"]) for row in stored]), scores[:, 0].float(), atol=1e-4, rtol=1e-3
    )
    embedded = tsne(points)
    assert float(stored[0]["tsne_1"]) == pytest.approx(float(embedded[0, 0]), rel=0.05)
    nearest, _ = nearest_neighbors(points, points[:20], 5, exclude=torch.arange(20).repeat(3))
    shares = (y[nearest] == y.repeat(3)[:, None]).double().mean(1)
    assert [float(row["neighbors_of_true_class"]) for row in stored] == pytest.approx(shares.tolist())
    logged = rows(tmp_path / "metrics.csv")[-1]
    assert float(logged["features/pgd/neighbors_of_true_class"]) == pytest.approx(float(shares[20:40].mean()))


def test_what_is_drawn(trainer, monkeypatch):
    drawn = {}
    for module, name in (
        (occlusion_map, "occlusion_figure"),
        (gradient_maps, "gradient_maps_figure"),
        (feature_space, "neighbors_figure"),
        (activation_maximization, "maximization_figure"),
    ):
        draw = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, draw=draw: drawn.update({name: args}) or draw(*args))
    chosen = [
        OcclusionMap(images=2, score="logit", explain="label"),
        GradientMaps(images=2),
        ActivationMaximization([2, 0], layer="net.network.features.0", presets=["none"], steps=2),
        FeatureSpace(ATTACKS, queries=2, neighbors=3, images=12),
    ]
    task = Task()
    trainer(*chosen).test(task, Source(), verbose=False)
    x, y = images().tensors
    examples, label, title = drawn["occlusion_figure"]
    assert (label, title) == ("logit lost when covered", "Occlusion, 2 × 2 squares, Task")
    assert [each.name for each in examples] == ["image 0\ncat", "image 1\na very long nam…"]
    wanted = maps_of(task, x[:2], y[:2], size=2, stride=1, score="logit")
    assert examples[1].captions["drop"] == f"a square: {wanted[1].min():.2f} to {wanted[1].max():.2f}"
    assert examples[0].maps["drop"].shape == (8, 8)
    assert list(drawn["gradient_maps_figure"][0][0].maps) == ["saliency", "deconvnet", "guided"]
    found, columns, _ = drawn["neighbors_figure"]
    assert [name for name, _ in found] == [
        f"image {place}, {kind}\n{name}"
        for place, name in ((0, "cat"), (1, "a very long nam…"))
        for kind in ("clean", "pgd", "fgsm")
    ]
    assert columns == ["image", "neighbour 1", "neighbour 2", "neighbour 3"]
    nearest, apart = nearest_neighbors(features(task, x[1:2]), features(task, x[:12]), 3, exclude=torch.tensor([1]))
    shown = found[3][1]
    for rank in range(3):
        near = int(nearest[0, rank])
        torch.testing.assert_close(shown[rank + 1][0], x[near], atol=0.5 / 255 + 1e-6, rtol=0)
        assert shown[rank + 1][1].endswith(f", {float(apart[0, rank]):.3g}")
    pictures, names, captions, _ = drawn["maximization_figure"]
    assert names == ["2", "0"]
    answer = task.net.network.features[0](task.net.normalize(pictures["none"]))[:, :, 4, 4]
    assert float(captions["none"][1]) == pytest.approx(float(answer[1, 0].detach()), rel=1e-2)


def test_images_of_our_own_sets_have_each_class_in_its_share(trainer):
    class Digit(Task):
        def __init__(self):
            super().__init__(1)
            self.net = Classifier("small_cnn", 10, 8, 1)

    data = Digits(image_size=8, eval_batch_size=50)
    seen = {}

    class Look(pl.Callback):
        def on_test_start(self, trainer, pl_module):
            shown = ShownImages("Look", trainer, 20)
            seen["first"] = shown.first(20)
            seen["mine"] = list(shown.mine(6))

    trainer(Look(), FilterGrid()).test(Digit(), data, verbose=False)
    first = seen["first"]
    assert torch.bincount(first.labels, minlength=10).tolist() == [2] * 10
    expected = data.test_dataset.batch(first.places.tolist())
    assert torch.equal(first.images, expected[0])
    assert torch.equal(first.labels, expected[1])
    assert [len(batch.images) for batch in seen["mine"]] == [6, 6, 6, 2]
    assert torch.equal(torch.cat([batch.places for batch in seen["mine"]]), first.places)


@pytest.mark.parametrize("size", [1, 3, 4, 23, 100])
def test_batches_of_loaders_are_cut_anew(size, trainer):
    seen = []

    class Look(pl.Callback):
        def on_test_start(self, trainer, pl_module):
            seen.extend(ShownImages("Look", trainer, 10).mine(size))

    trainer(Look()).test(Task(), DataLoader(images(), batch_size=4), verbose=False)
    x, y = images().tensors
    assert torch.equal(torch.cat([batch.images for batch in seen]), x[:10])
    assert torch.equal(torch.cat([batch.labels for batch in seen]), y[:10])
    assert torch.cat([batch.places for batch in seen]).tolist() == [*range(10)]
    assert all(len(batch.images) == size for batch in seen[:-1])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (FilterGrid, {"scale": "none"}, "FilterGrid: scale must be one of all, each, got 'none'"),
        (ActivationGrid, {"images": 0}, "ActivationGrid: images must be at least 1, got 0"),
        (ActivationGrid, {"channels": 0}, "ActivationGrid: channels must be at least 1"),
        (ActivationGrid, {"layers": []}, "ActivationGrid: layers must be one or more names"),
        (TopPatches, {"k": 0}, "TopPatches: k must be at least 1, got 0"),
        (TopPatches, {"channels": [-1]}, "TopPatches: channels must be one or more numbers >= 0"),
        (TopPatches, {"max_overlap": 2}, "TopPatches: max_overlap must be in"),
        (TopPatches, {"batch_size": 0}, "TopPatches: batch_size must be at least 1"),
        (OcclusionMap, {"size": 0}, "OcclusionMap: size must be at least 1, got 0"),
        (OcclusionMap, {"fill": 2}, r"OcclusionMap: fill must be in \[0, 1\] or mean"),
        (OcclusionMap, {"explain": "both"}, "OcclusionMap: explain must be prediction or label, got 'both'"),
        (GradientMaps, {"maps": ["lime"]}, "GradientMaps: maps must be different ones of saliency"),
        (GradientMaps, {"maps": []}, "GradientMaps: maps must be different ones of"),
        (ActivationMaximization, {"presets": ["x"]}, "ActivationMaximization: presets must be some of blur_norm"),
        (ActivationMaximization, {"presets": []}, "ActivationMaximization: presets must be one or more"),
        (ActivationMaximization, {"classes": [-1]}, "ActivationMaximization: classes must be one or more numbers >= 0"),
        (ActivationMaximization, {"steps": 0}, "ActivationMaximization: steps must be at least 1"),
        (FeatureSpace, {"attacks": {}}, "FeatureSpace: attacks must be at least one attack by name"),
        (FeatureSpace, {"attacks": {"clean": FGSM(eps=0.1)}}, "other names than clean"),
        (FeatureSpace, {"images": 5}, "FeatureSpace: images must be at least 6, got 5"),
        (FeatureSpace, {"perplexity": 300}, r"FeatureSpace: perplexity must be in \(0, 300\)"),
        (FeatureSpace, {"queries": 0}, "FeatureSpace: queries must be at least 1"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (FilterGrid("net.network.linear"), "filters: layer must name a convolution of the model"),
        (FilterGrid("net.network.features.3"), "FilterGrid: layer must see 1 or 3 channels to be shown, got 32"),
        (ActivationGrid(["fc"]), "ActivationGrid: layers must name a layer of the model, got 'fc'"),
        (ActivationGrid(["net.network.linear"]), r"layers must give maps \(B, C, h, w\), got \(1, 3\)"),
        (TopPatches("fc"), "TopPatches: layer must name a layer of the model, got 'fc'"),
        (TopPatches(channels=[64]), r"TopPatches: channels must be in \[0, 64\) in net.network.features.3, got 64"),
        (OcclusionMap(size=9), "OcclusionMap: size must be at most the images' smaller side 8, got 9"),
        (ActivationMaximization([3]), r"ActivationMaximization: classes must be in \[0, 3\), got 3"),
        (ActivationMaximization(layer="fc"), "ActivationMaximization: layer must name a layer"),
        (FeatureSpace(layer="fc"), "FeatureSpace: layer must name a layer of the model, got 'fc'"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_the_first_batch(callback, message, trainer, monkeypatch):
    monkeypatch.setattr(Task, "test_step", lambda *args: pytest.fail("tested"))
    with pytest.raises(ValueError, match=message):
        trainer(callback).test(Task(), Source(), verbose=False)


def test_data_that_do_not_fit(trainer, monkeypatch):
    monkeypatch.setattr(Task, "test_step", lambda *args: pytest.fail("tested"))
    two = DataLoader(images(6, 2), batch_size=3)
    with pytest.raises(ValueError, match="FilterGrid: images must have 1 or 3 channels to be shown, got 2"):
        trainer(FilterGrid()).test(Task(2), two, verbose=False)
    with pytest.raises(ValueError, match="FeatureSpace: the test set must have at least 6 images, got 5"):
        trainer(FeatureSpace()).test(Task(), DataLoader(images(5), batch_size=3), verbose=False)
    with pytest.raises(ValueError, match=r"perplexity must be in \(0, 6\), the points of 6 images, got 50"):
        trainer(FeatureSpace(perplexity=50)).test(Task(), DataLoader(images(6), batch_size=3), verbose=False)


@pytest.mark.long
def test_two_processes_draw_what_one_draws(tmp_path, trainer):
    trainer(*shared_work(), default_root_dir=tmp_path / "1").test(
        Task(), DataLoader(images(), batch_size=4), verbose=False
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    command = [sys.executable, __file__, str(tmp_path / "2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "1", tmp_path / "2"
    geometry = ("boundary_geometry.csv", "dominant_labels.csv", "class_paths.csv")
    for name in ("top_patches.csv", "feature_space.csv", *geometry):
        assert (one / name).read_text() == (two / name).read_text()
    names = {path.name for path in (one / "figures").iterdir()}
    assert names == {path.name for path in (two / "figures").iterdir()}
    assert len(names) == 8
    for name in names:
        assert (one / "figures" / name).read_bytes() == (two / "figures" / name).read_bytes(), name


def test_the_names_in_the_docs_are_those_of_the_files():
    page = (Path(__file__).parents[2] / "docs" / "visualization.md").read_text()
    for name in NAMES:
        assert re.sub(r"_net\..*", "_<layer>", name) + ".png" in page


def shared_work():
    return [
        TopPatches(k=2, images=20, batch_size=6, channels=[1, 3]),
        FeatureSpace(ATTACKS, images=20, batch_size=6, queries=1),
        OcclusionMap(images=1),
        BoundaryGeometry(images=9, rounds=2, directions=1, iterations=2, batch_size=2),
        DecisionRegions(images=3, cells=11, rounds=2),
        DominantLabels(FGSM(eps=0.2), images=9, points=20, batch_size=4),
        ClassConnectedness(images=20, batch_size=1),
    ]


def main(folder):
    """A test run on two processes, called by the test above."""
    torch.set_num_threads(1)
    pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        callbacks=shared_work(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).test(Task(), DataLoader(images(), batch_size=4), verbose=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
