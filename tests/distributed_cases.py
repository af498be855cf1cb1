"""What `test_distributed.py` runs on one, two and three processes; each process calls the functions that it names."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import (
    AccuracyUnderNoise,
    AdversarialWriter,
    ConfusionMatrix,
    IdentificationWriter,
    InputSaliency,
    LearningCurves,
    Neutralization,
    ReconstructionGrid,
    ResultsTable,
    RobustnessReport,
    RobustnessTable,
    RunProgress,
    SaliencyProfile,
    SingularValues,
    SSIMPrecision,
    Transferability,
)
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import metrics
from lit_adv.attacks import (
    FGSM,
    PGD,
    DeepFool,
    Frame,
    GeneratedPerturbation,
    OnePixel,
    RandFGSM,
    RandomNoise,
    RandomPixels,
    Square,
)
from lit_adv.attacks.randomness import Draws, row_seeds
from lit_adv.data import AdversarialDataModule, Arrays, Digits, PictureFolder
from lit_adv.data.sampling import rank_and_world
from lit_adv.models import Classifier, PerturbationNetwork, classifier, save_classifier
from lit_adv.runs import MetricsFile
from lit_adv.tasks import (
    REDRL,
    AdversarialTraining,
    Crafting,
    DefensiveDistillation,
    EnsembleAdversarialTraining,
    ParsevalTraining,
    PerturbationGenerator,
    VictimClassifier,
)

# 11 and 13 are divisible neither by the processes nor by the batches
TESTED, VALIDATED, BATCH = 11, 13, 4
WEAK = FGSM(eps=0.15)
# of the kind that cannot be rounded to another sign by another batch: no random start, or float64
ATTACKS = {
    "pgd/4": PGD(eps=0.1, step_size=0.05, steps=2, random_start=False),
    "pgd/8": PGD(norm="l2", eps=4, step_size=2, steps=2, random_start=False),
    "fgsm": FGSM(eps=0.2),
}


def trainer(folder, world, *callbacks, **settings):
    settings = {"logger": MetricsFile(folder), "max_epochs": 1, "precision": "64-true", **settings}
    return pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(each, RunProgress) for each in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        inference_mode=False,
        default_root_dir=folder,
        **settings,
    )


def seeded(seed, make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


# ---------------------------------------------------------------- metrics


def metric_cases():
    """By the metric's name, what it computes of some of 31 images; every metric that is a class of its own."""
    before, after, label, attack = torch.randint(0, 3, (4, 31), generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    uniform = torch.rand(31, 3, generator=draws, dtype=torch.float64)
    clean, noise, cam = (torch.rand(31, *shape, generator=draws) for shape in ((3, 12, 12), (3, 12, 12), (12, 12)))
    adversarial = (clean + 0.2 * (label[:, None, None, None] - 1) * (noise - 0.5)).clamp(0, 1)
    names, layers = ["clean", "pgd", "cw"], {"a": 1, "b": 2}

    def counted(metric, update):
        return lambda rows: (update(metric, rows), metric.compute())[1]

    def robust(metric, rows):
        right = before[rows] == label[rows]
        fooled = {"pgd": (after == attack)[rows][right]}
        metric.update(right, fooled, {"pgd": {"l2": uniform[rows][right][:, 0]}})

    def masking(metric, rows):
        right = before[rows] != label[rows]
        fooled = {name: part[rows][right] for name, part in (("fgsm", after == attack), ("pgd", after == label))}
        left = ~fooled["pgd"]
        passes = {name: torch.stack([label, attack], 1)[rows][right] for name in fooled}
        metric.update(
            right=right,
            fooled=fooled,
            passes={**passes, "search": passes["pgd"][left]},
            zeros=label[rows][right],
            entries=4,
            gaps=uniform[rows][right][:, 0],
            found=(before == attack)[rows][right][left],
            exchanged=torch.stack([before == attack, after == attack], 1)[rows][right],
            classes=5,
        )

    def transfer(metric, rows):
        mine = torch.arange(31)[rows]
        attempted = torch.stack([torch.stack([(mine + s + v) % 3 > 0 for v in range(3)]) for s in range(2)])
        success = attempted & (mine % 2 == 0)
        norms = {n: torch.where(success, uniform[rows][:, i], torch.nan) for i, n in enumerate(("l0", "l2", "linf"))}
        made = {"attempted": attempted, "success": success, "iterations": success * (mine + 1)}
        metric.update(SimpleNamespace(**made, norms=norms, forwards=mine + 1, backwards=mine))

    def neutral(metric, rows):
        metric.update({"clean": (before == label)[rows], "modified": (after == label)[rows]})
        if early := [row for row in rows if row < 23]:  # the others have none of these
            metric.update({"adversarial": (attack == label)[early]})

    logits = torch.stack([label, attack, label * attack], 1).float()
    budget = torch.where(attack == 0, torch.nan, 2.0 + before)
    hits = torch.stack([after == label, attack == label])
    return {
        "AnsweredAccuracy": counted(
            metrics.AnsweredAccuracy(0.4), lambda m, r: m.update(logits[r].double().softmax(1), attack[r])
        ),
        "BudgetError": counted(
            metrics.BudgetError(names), lambda m, r: m.update(1.0 + after[r], budget[r], label[r], attack[r])
        ),
        "FoolingRate": counted(metrics.FoolingRate(), lambda m, r: m.update(before[r], after[r])),
        "HierarchicalRecognition": counted(
            metrics.HierarchicalRecognition(names, {"pgd": "gradient", "cw": "gradient"}),
            lambda m, r: m.update(label[r], attack[r]),
        ),
        "LocalizationScores": counted(
            metrics.LocalizationScores(), lambda m, r: m.update(metrics.ssim_map(clean[r], adversarial[r]), cam[r])
        ),
        "LogitCalibration": counted(metrics.LogitCalibration(0.9), lambda m, r: m.update(logits[r], attack[r])),
        "MaskingCounts": counted(metrics.MaskingCounts(["fgsm", "pgd"], ["search"]), masking),
        "MeanPSNR": counted(metrics.MeanPSNR(), lambda m, r: m.update(clean[r], adversarial[r])),
        "MeanSSIM": counted(metrics.MeanSSIM(), lambda m, r: m.update(clean[r], adversarial[r])),
        "NeutralizationScore": counted(metrics.NeutralizationScore(["clean", "modified", "adversarial"]), neutral),
        "NoiseAccuracy": counted(
            metrics.NoiseAccuracy(["a"], ["FGSM"], [40, 10]),
            lambda m, r: m.update((before == label)[None, r], hits[None, None][..., r]),
        ),
        "RecognitionAccuracy": counted(
            metrics.RecognitionAccuracy(names, weights=[1, 12, 4]), lambda m, r: m.update(label[r], attack[r])
        ),
        "ReconstructionAccuracy": counted(
            metrics.ReconstructionAccuracy(["v", "w"], names),
            lambda m, r: m.update(before[r], after[r], label[r], attack[r], label[r] % 2),
        ),
        "RobustAccuracy": counted(metrics.RobustAccuracy(["pgd"]), robust),
        "SaliencyProfileMean": counted(metrics.SaliencyProfileMean(layers), lambda m, r: m.update(uniform[r])),
        "SaliencyStatistics": counted(metrics.SaliencyStatistics(layers), lambda m, r: m.update(uniform[r])),
        "TransferMatrix": counted(metrics.TransferMatrix(["a", "b"], ["a", "b", "c"]), transfer),
        "VictimAccuracy": counted(
            metrics.VictimAccuracy(names, ["v", "w", "x"], ["v", "w"]),
            lambda m, r: m.update(label[r] % 2, attack[r], before[r] - (attack[r] == 0).long()),
        ),
    }


def metrics_of_ranks(folder, world):
    rank, _ = rank_and_world()
    if world == 3 and rank == 2:
        rows = []  # one that got no image, as no sampler of ours leaves it, but other people's may
    else:
        rows = list(range(31)) if world == 1 else list(range(23)) if rank == 0 else list(range(23, 31))
    found = {name: plain(case(rows)) for name, case in metric_cases().items()}
    (folder / f"metrics{rank}.json").write_text(json.dumps(found))


def plain(value):
    """The same in what JSON has."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- callbacks on a classifier


def pictures(count, seed):
    """Noise with a dark bar, whose place is the class."""
    x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.arange(count) % 3
    for number in range(3):
        x[labels == number, :, 5 * number : 5 * number + 5] *= 0.2
    return TensorDataset((x * 255).round() / 255, labels)


def network(seed=5):
    model = seeded(seed, lambda: Classifier("small_cnn", 3, 16, 1)).eval().double()
    # random weights prefer one class: without that preference all are found
    with torch.no_grad():
        model.network.linear.bias -= model(pictures(24, 0).tensors[0]).mean(0)
    return model


class Pictures(pl.LightningDataModule):
    """Ordinary loaders, which Lightning deals to the processes: with some images twice, so that shares are even."""

    num_classes, image_size, in_channels = 3, 16, 1

    def train_dataloader(self):
        return DataLoader(pictures(31, 1), batch_size=BATCH)

    def val_dataloader(self):
        return DataLoader(pictures(VALIDATED, 3), batch_size=BATCH)

    def test_dataloader(self):
        return DataLoader(pictures(TESTED, 2), batch_size=BATCH)


class Tested(pl.LightningModule):
    """A classifier that is tested without a number of its own."""

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, x):
        return self.model(x)

    def test_step(self, batch, batch_idx):
        return None


def classifier_callbacks():
    """All at once, on plain batches (images, labels)."""
    regions = {"frame": Frame(4), "random": RandomPixels(0.3)}
    card = PGD(eps=1.0, step_size=0.0039, steps=12, random_start=False)
    attacks = {
        "pgd": PGD(eps=0.05, step_size=0.02, steps=3),
        "rand": RandFGSM(eps=0.1),
        "square": Square(eps=0.1, queries=9),
    }
    return [
        AccuracyUnderNoise(decibels=(40, 10), steps=2),
        neutralization("split"),
        RobustnessReport(eps=0.1, undefended=network(1), radii=[0.05], restarts=1, queries=30, seed=4),
        RobustnessTable(attacks, seed=2),
        SaliencyProfile(ATTACKS),
        SSIMPrecision(ATTACKS),
        Transferability(card, regions=regions, classifiers={"other": network(1)}, goal="random", seed=3),
    ]


def neutralization(protocol):
    options = {"search": True, "grid": [0.3, 0.7], "max_drop": 0.2, "adaptive_attack": WEAK, "examples": 1}
    return Neutralization(WEAK, [(0, 1), (2, 0)], protocol=protocol, **options)


def callbacks_on_a_classifier(folder, world):
    trainer(folder / "classifier", world, *classifier_callbacks()).test(Tested(), Pictures(), verbose=False)
    paper = trainer(folder / "paper", world, neutralization("paper"))
    paper.test(Tested(), Pictures(), verbose=False)


# ---------------------------------------------------------------- callbacks on REDRL, and what is written


def adversarial(folder, **changes):
    draws = np.random.default_rng(0)
    path = folder / "images.npz"
    sets = {"train": 37, "test": TESTED}
    stored = {f"x_{name}": draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8) for name, count in sets.items()}
    if rank_and_world()[0] == 0 and not path.exists():
        np.savez(path, **stored, **{f"y_{name}": np.arange(count) % 3 for name, count in sets.items()})
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    names = {"a": 0, "b": 1}
    victims = {
        name: seeded(number, lambda: Classifier("small_cnn", 3, 8).double().eval()) for name, number in names.items()
    }
    settings = {"batch_size": 6, "eval_batch_size": 5, "quantise": "none", **changes}
    return AdversarialDataModule(Arrays(path=path, validation=VALIDATED), victims, ATTACKS, **settings)


def redrl():
    return seeded(
        2, lambda: REDRL(width=4, blocks=1, recognizer="small", weight_features=0.0, heads=("victim", "budget"))
    )


def redrl_callbacks():
    """All at once, on adversarial batches."""
    return [
        ConfusionMatrix(),
        InputSaliency(examples=[0, 5]),
        ReconstructionGrid(images=1),
        ResultsTable(),
        RunProgress(),
        SaliencyProfile(),
        SSIMPrecision(),
    ]


def other_callbacks():
    """Those that write predictions, and those of training; of a `Trainer` each."""
    writer = AdversarialWriter(splits=("test", "val"), max_images_per_shard=6)
    return [writer, IdentificationWriter(), SingularValues(), LearningCurves(metrics=["val/loss", "val/acc"])]


def callbacks_on_redrl(folder, world):
    place = folder / "redrl"
    place.mkdir(exist_ok=True)
    task, data = redrl(), adversarial(folder)
    run = trainer(place, world, *redrl_callbacks())
    run.validate(task, data, verbose=False)
    run.test(task, data, verbose=False)
    written = folder / "written"
    rounded = adversarial(folder, quantise="round", eval_batch_size=4)
    writer, identifying = other_callbacks()[:2]
    run = trainer(written, world, writer, logger=False, precision="32-true")
    run.predict(Crafting(), datamodule=rounded, return_predictions=False)
    shown = folder / "pictures"
    if run.is_global_zero:
        shown.mkdir()
        draws = np.random.default_rng(3)
        for number in range(7):  # of two sizes
            side = 8 if number < 5 else 12
            Image.fromarray(draws.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(shown / f"{number}.png")
        (shown / "broken.png").write_text("no picture")
    run.strategy.barrier()
    run = trainer(folder / "identified", world, identifying, logger=False)
    run.predict(task, datamodule=PictureFolder(str(shown), batch_size=2), return_predictions=False)


# ---------------------------------------------------------------- tasks


def task_cases(folder, micro):
    """By name, a task, its data with `micro` images a batch and process, and what the trainer is told beside.

    Every task and every way of training that takes a step of its own; networks without BatchNorm.
    """
    weak = PGD(eps=0.1, step_size=0.05, steps=2)
    small = {"name": "small_cnn", "learning_rate": 0.02, "momentum": 0.5}
    digits = {
        "image_size": 8,
        "train_limit": 36,
        "validation": VALIDATED,
        "test_limit": TESTED,
        "eval_batch_size": BATCH,
    }

    def data():
        return Digits(batch_size=micro, seed=3, **digits)

    def other(seed):
        return seeded(seed, lambda: classifier("small_cnn", 10, 8, 1).double())

    def drawing():
        made = seeded(3, lambda: PerturbationNetwork(1, width=4, blocks=1).double())
        return GeneratedPerturbation(generator=made, eps=0.1)

    teacher = folder.parent / "teacher.safetensors"
    made = {
        "victim": lambda: VictimClassifier(**small),
        "madry": lambda: AdversarialTraining(attack=weak, ema_decay=0.9, schedule="cyclic", **small),
        "trades": lambda: AdversarialTraining(loss="trades", **small),
        "awp": lambda: AdversarialTraining(attack=weak, awp=0.01, **small),
        "free": lambda: AdversarialTraining(attack=FGSM(eps=0.1), replays=2, **small),
        "learning attack": lambda: AdversarialTraining(attack=drawing(), update_attack=True, **small),
        "ensemble": lambda: EnsembleAdversarialTraining(
            attack=FGSM(eps=0.1), sources={name: other(seed) for seed, name in enumerate("ab")}, **small
        ),
        "distillation": lambda: DefensiveDistillation(temperature=5.0, teacher=str(teacher), **small),
        "parseval": lambda: ParsevalTraining("parseval_wrn10_1", learning_rate=0.02, beta=0.1, rows=0.5),
        "generator": lambda: PerturbationGenerator(other(4), width=4, blocks=1),
    }
    cases = {name: (lambda make=make: seeded(0, make), data) for name, make in made.items()}
    cases["redrl"] = (plain_redrl, lambda: adversarial(folder, batch_size=micro))
    return cases


# what takes a step of its own for every batch, and therefore refuses accumulated ones; and REDRL, whose data draw one
# attack of each class for a batch, so that two small ones have other images than a large one
ONE_BATCH_A_STEP = ("awp", "free", "learning attack", "redrl")


TRAINED = (
    *(AdversarialTraining, DefensiveDistillation, EnsembleAdversarialTraining, ParsevalTraining),
    *(PerturbationGenerator, REDRL, VictimClassifier),
)
CRAFTED = (
    *(FGSM(eps=0.1), RandFGSM(eps=0.1), PGD(eps=0.1, steps=3), PGD(norm="l2", eps=1.0, step_size=0.3, steps=3)),
    *(Square(eps=0.1, queries=12), RandomNoise.example(), DeepFool(steps=5), OnePixel(population=6, generations=3)),
)


def plain_redrl():
    """With a recogniser that has no BatchNorm."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(128, 3)

        def forward(self, inputs):
            return self.head(self.trunk(inputs))

    class PlainREDRL(REDRL):
        def configure_model(self):
            if self.psi is None:
                super().configure_model()
                self.psi = seeded(5, Plain).double()

    return PlainREDRL(width=4, blocks=1, recognizer="small", weight_features=0.0, schedule="onecycle")


class Reductions(pl.Callback):
    """Counts how often processes reduce gradients."""

    def __init__(self):
        self.count = 0

    def on_train_start(self, trainer, pl_module):
        if trainer.world_size > 1:  # Lightning registers hooks on GPUs only
            trainer.strategy.model.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        self.count += 1
        work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])


def train_tasks(folder, world, share=1):
    """Evaluates every task as it is initialised, trains three steps of 12 images, and evaluates again.

    Args:
        folder: Where to.
        world: How many processes.
        share: How many batches make one step.
    """
    teacher = folder.parent / "teacher.safetensors"
    if not teacher.exists():
        save_classifier(seeded(9, lambda: Classifier("small_cnn", 10, 8, 1)), teacher)
    found = {}
    for name, (make, data) in task_cases(folder, 12 // world // share).items():
        if share > 1 and name in ONE_BATCH_A_STEP:
            continue
        place = folder / f"{name}-{share}"
        watching = other_callbacks()[2:] if name == "parseval" else []
        pl.seed_everything(0, verbose=False)
        counting = Reductions()
        run = trainer(place, world, counting, *watching, accumulate_grad_batches=share)
        task, source = make(), data()
        before = [*run.validate(task, source, verbose=False), *run.test(task, source, verbose=False)]
        after = []
        if world < 3:  # an epoch's steps are all that differs from one process to two
            run.fit(task, datamodule=source)
            after = run.test(task, source, verbose=False)
        weights = torch.cat([p.detach().flatten() for p in task.parameters()])
        place.mkdir(exist_ok=True)
        torch.save(weights, place / f"weights{run.global_rank}.pt")
        if run.is_global_zero:
            found[name] = {"before": before, "after": after, "steps": run.global_step}
            (place / "reductions").write_text(str(counting.count))
    if found:
        (folder / f"tasks-{share}.json").write_text(json.dumps(found))


# ---------------------------------------------------------------- crafting


def craft(folder, world):
    """Each process its share of eleven images under every attack that needs nothing but a network."""
    rank, _ = rank_and_world()
    single = seeded(7, lambda: Classifier("small_cnn", 3, 8)).eval()
    x = torch.rand(TESTED, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(TESTED) % 3
    found = {}
    for attack in CRAFTED:
        rows = slice(rank, None, world)
        double = attack.run(copy.deepcopy(single).double(), x[rows].double(), labels[rows], seed=4)
        float32 = attack.run(single, x[rows], labels[rows], seed=4)
        found[repr(attack)] = {"images": double.images, "successes": float32.success}
    draws = Draws(row_seeds(x[rank::world], 4))
    found["draws"] = {"uniform": draws.uniform((3, 8, 8)), "normal": draws.normal((3, 8, 8))}
    torch.save(found, folder / f"crafted{rank}.pt")


def everything(folder, world):
    """All of them; processes meet first in the trainers, so what is to meet before comes after."""
    callbacks_on_a_classifier(folder, world)
    callbacks_on_redrl(folder, world)
    metrics_of_ranks(folder, world)
    craft(folder, world)
    train_tasks(folder, world)
    if world == 1:
        train_tasks(folder, world, share=2)
