"""Nothing grows from batch to batch: live tensors, their bytes and Python's objects, for every attack and callback."""

import gc
import inspect
import tracemalloc
import warnings

import lit_adv.callbacks
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import FGSM, PGD, Attack, RandomNoise
from lit_adv.tasks import VictimClassifier

FULL = 200
# of Python's own: a cache that fills, an interned number
SLACK_BYTES = 30_000


class Level:
    """What is alive now."""

    def __init__(self) -> None:
        gc.collect()
        found = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
        self.tensors = len(found)
        stores = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}
        self.bytes = sum(stores.values())
        self.python = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0

    def grown(self, since: "Level") -> str:
        """What there is more of, in words; empty where it is nothing."""
        if self.tensors > since.tensors:
            return f"{self.tensors - since.tensors} tensors more"
        if self.bytes > since.bytes:
            return f"{self.bytes - since.bytes} bytes of tensors more"
        if self.python > since.python + SLACK_BYTES:
            return f"{self.python - since.python} bytes of Python's more"
        return ""


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new():
    """Leaves what is there already, the imported modules above all, out of what is looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16, 4)).eval()


def growth(step, batches, warm):
    for number in range(warm):
        step(number)
    before = Level()
    for number in range(warm, batches):
        step(number)
    return Level().grown(before)


def attacks():
    found, waiting = set(), [Attack]
    for cls in waiting:
        waiting += cls.__subclasses__()
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and cls.__module__.startswith("lit_adv."):
            found.add(cls)
    # those of other libraries need them
    return sorted((cls for cls in found if cls.__module__ != "lit_adv.attacks.adapters"), key=lambda cls: cls.__name__)


def attack_growth(cls, network, batches, warm):
    attack, draws = cls.example(), torch.Generator().manual_seed(0)

    def step(number):
        images = torch.rand(3, 3, 8, 8, generator=draws)
        labels = torch.randint(0, 4, (3,), generator=draws)
        attack(network, images, labels, seed=number)

    return growth(step, batches, warm)


@pytest.mark.parametrize("cls", attacks(), ids=lambda cls: cls.__name__)
def test_attacks(cls, network):
    assert attack_growth(cls, network, batches=7, warm=3) == ""


@pytest.mark.long
@pytest.mark.parametrize("cls", attacks(), ids=lambda cls: cls.__name__)
def test_attacks_over_200_batches(cls, network, traced):
    assert attack_growth(cls, network, FULL, warm=20) == ""


def test_a_small_tensor_a_batch_is_noticed(network, traced):
    kept = []

    class Leaking(FGSM):
        def _craft(self, problem):
            kept.append(torch.zeros(1))
            return super()._craft(problem)

        @classmethod
        def example(cls):
            return cls(eps=0.1)

    assert attack_growth(Leaking, network, batches=9, warm=4) == "5 tensors more"


def test_a_string_a_batch_is_noticed(network, traced):
    kept = []
    assert "of Python's" in growth(lambda number: kept.append(f"{number}" * 2000), batches=30, warm=4)


# callbacks


class Data(pl.LightningDataModule):
    """Test batches of two images; the first twelve images to train and to validate on."""

    num_classes = 3

    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def loader(self, images, labels, **options):
        return DataLoader(TensorDataset(images, labels), batch_size=2, **options)

    def train_dataloader(self):
        return self.loader(self.images[:12], self.labels[:12])

    val_dataloader = train_dataloader

    def test_dataloader(self):
        return self.loader(self.images, self.labels)


class Probe(pl.Callback):
    """Looks at what is alive after some batches and after the last but one."""

    def __init__(self, first: int, last: int) -> None:
        self.marks = {first: None, last: None}

    def look(self, batch_idx):
        if batch_idx in self.marks:
            self.marks[batch_idx] = Level()

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.look(batch_idx)

    def grown(self):
        first, last = self.marks.values()
        return last.grown(first)


def small(name, folder):
    """An instance of a callback that looks at batches of (image, label), as cheap as it can be."""
    fgsm, pgd = FGSM(eps=0.1), PGD(eps=0.1, step_size=0.05, steps=2)
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    made = {
        "AccuracyUnderNoise": lambda cls: cls(decibels=(30, 20), steps=2),
        "InputSaliency": lambda cls: cls(attacks={"fgsm": fgsm}, n=2, floor=0.1),
        "Neutralization": lambda cls: cls(fgsm, pairs=[(0, 1), (1, 0)], examples=1),
        "RobustnessReport": lambda cls: cls(
            eps=0.1, undefended=other, restarts=1, queries=5, radii=[0.05], min_images=1
        ),
        "RobustnessTable": lambda cls: cls({"fgsm": fgsm, "pgd": pgd, "noise": RandomNoise(eps=0.1)}),
        "SSIMPrecision": lambda cls: cls(attacks={"fgsm": fgsm}),
        "SaliencyProfile": lambda cls: cls(attacks={"fgsm": fgsm}, floor=0.1),
        "Transferability": lambda cls: cls(pgd, classifiers={"other": other}),
        "RunProgress": lambda cls: cls(),
        "ResultsTable": lambda cls: cls(),
    }
    return made[name](getattr(lit_adv.callbacks, name)) if name in made else None


# what they keep is a number or a few for each image, said in their documentation
KEEP = {"RobustnessReport": "gaps"}
CALLBACKS = (
    *("AccuracyUnderNoise", "InputSaliency", "Neutralization", "RobustnessReport", "RobustnessTable", "SSIMPrecision"),
    *("SaliencyProfile", "Transferability", "RunProgress", "ResultsTable"),
)
# which look at no batch of a test, or are in the tests of what they write
OTHERS = {"ConfusionMatrix", "LearningCurves", "ParsevalRetraction", "SingularValues"}
OTHERS |= {"AdversarialWriter", "IdentificationWriter", "ReconstructionGrid"}
# which look at some images once, at the end of a test
OTHERS |= {"FilterGrid", "ActivationGrid", "TopPatches", "OcclusionMap", "GradientMaps", "ActivationMaximization"}
OTHERS |= {"FeatureSpace", "BoundaryGeometry", "DecisionRegions", "DominantLabels", "ClassConnectedness"}


def test_no_callback_is_left_out():
    names = {name for name in lit_adv.callbacks.__all__ if isinstance(getattr(lit_adv.callbacks, name), type)}
    assert names == {*CALLBACKS, *OTHERS}


def callback_growth(name, folder, batches, first, extra=()):
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2 * batches, 1, 8, 8, generator=draws)
    labels = torch.arange(2 * batches) % 3
    task = VictimClassifier(name="small_cnn", num_classes=3, image_size=8, in_channels=1)
    task.configure_model()
    probe = Probe(first, batches - 2)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=name == "RunProgress",
        enable_model_summary=False,
        inference_mode=False,
        callbacks=[small(name, folder), *extra, probe],
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.test(task, datamodule=Data(images, labels), verbose=False)
    return probe


def check(name, probe, batches):
    first, last = probe.marks.values()
    if name in KEEP:
        # a tensor a batch of a few numbers an image
        assert last.tensors - first.tensors <= batches
        assert last.bytes - first.bytes <= 100 * 2 * batches
        return
    assert probe.grown() == ""


# the report refuses to look at little
@pytest.mark.parametrize("name", sorted({*CALLBACKS} - {"RobustnessReport"}))
def test_callbacks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(name, callback_growth(name, tmp_path, 12, 5), 12)


@pytest.mark.long
@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_over_200_batches(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(name, callback_growth(name, tmp_path, FULL, 20), FULL)


def test_a_callback_that_keeps_a_tensor_a_batch_is_noticed(tmp_path):
    class Leaking(pl.Callback):
        def __init__(self):
            self.kept = []

        def on_test_batch_end(self, *arguments):
            self.kept.append(torch.zeros(1))

    probe = callback_growth("ResultsTable", tmp_path, 12, 5, extra=[Leaking()])
    assert probe.grown() == "5 tensors more"
