"""What the metrics share: two processes must give what one gives."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_adv.metrics import (
    AnsweredAccuracy,
    BudgetError,
    FoolingRate,
    HierarchicalRecognition,
    LocalizationScores,
    LogitCalibration,
    MeanPSNR,
    MeanSSIM,
    NeutralizationScore,
    RecognitionAccuracy,
    ReconstructionAccuracy,
    VictimAccuracy,
    ssim_map,
)
from lit_adv.metrics.checks import check_indices


def test_any_integer_dtype_passes() -> None:
    columns = {"a": torch.tensor([0, 4], dtype=torch.uint8), "b": torch.tensor([0, 1], dtype=torch.int32)}
    check_indices("Owner", columns, {"a": (5, "remedy"), "b": (2, "remedy")})
    with pytest.raises(ValueError, match=r"Owner: a must be in \[0, 4\), got 4 \(remedy\)"):
        check_indices("Owner", columns, {"a": (4, "remedy")})


def test_reset_under_inference_mode_then_counted_outside() -> None:
    """Lightning resets in a validation loop, under inference mode, what a training loop may count on."""
    metric = FoolingRate()
    with torch.inference_mode():
        metric.reset()
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert metric.compute() == 0.5


def test_two_processes_equal_one(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch) -> None:
    # a spawned child imports this file by its name, which starts at the root
    monkeypatch.syspath_prepend(str(request.config.rootpath))
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    expected = _values(_columns())
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            # counts must be equal; sums of float64 are rounded in another order
            atol = 1e-13 if value.is_floating_point() else 0
            torch.testing.assert_close(got[name], value, rtol=0, atol=atol, equal_nan=True, msg=name)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    # uneven on purpose: a mean of the two ranks' rates would differ
    rows = slice(0, 23) if rank == 0 else slice(23, None)
    torch.save(_values(_columns()[:, rows]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _columns() -> torch.Tensor:
    return torch.randint(0, 3, (4, 31), generator=torch.Generator().manual_seed(0))


def _values(columns: torch.Tensor) -> dict[str, torch.Tensor]:
    before, after, label, attack = columns
    recognition = RecognitionAccuracy(["clean", "pgd", "cw"], weights=[1, 12, 4])
    reconstruction = ReconstructionAccuracy(["v", "w"], ["clean", "pgd", "cw"])
    fooling = FoolingRate()
    recognition.update(label, attack)
    reconstruction.update(before, after, label, attack, label % 2)
    fooling.update(before, after)
    hierarchy = HierarchicalRecognition(["clean", "pgd", "cw"], {"pgd": "gradient", "cw": "gradient"})
    hierarchy.update(label, attack)
    victim = VictimAccuracy(["clean", "pgd", "cw"], ["v", "w", "x"], ["v", "w"])
    victim.update(label % 2, attack, before - (attack == 0).long())
    budget = BudgetError(["clean", "pgd", "cw"])
    budget.update(1.0 + after, torch.where(attack == 0, torch.nan, 2.0 + before), label, attack)
    neutral = NeutralizationScore(["clean", "modified", "adversarial"])
    neutral.update({"clean": before == label, "modified": after == label})
    if len(label) != 8:  # the second process has none of these
        neutral.update({"adversarial": (attack == label)[:23]})
    scores = {f"{name} {key}": torch.tensor(v) for name, row in neutral.compute().items() for key, v in row.items()}
    more = {"hierarchy": hierarchy, "victim": victim, "budget": budget}
    return {
        **{f"{name} {key}": value for name, metric in more.items() for key, value in metric.compute().items()},
        **recognition.compute(),
        "reconstruction": reconstruction.compute(),
        "fooling": fooling.compute(),
        **scores,
        **_perceptual(before),
        **_calibration(label, attack),
    }


def _calibration(label: torch.Tensor, attack: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of logits that depend on the rows' own numbers."""
    logits = torch.stack([label, attack, label * attack], 1).float()
    fit, score = LogitCalibration(0.9), AnsweredAccuracy(0.4)
    fit.update(logits, attack)
    score.update(logits.double().softmax(1), attack)
    return {"calibration": torch.tensor(fit.compute(), dtype=torch.float64), **score.compute()}


def _perceptual(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one image for each number; one in three images is unchanged, so that some scores are undefined."""
    generator = torch.Generator().manual_seed(1)
    x, noise, cam = (torch.rand(3, *shape, generator=generator) for shape in ((3, 12, 12), (3, 12, 12), (12, 12)))
    y = (x + torch.tensor([0.0, 0.1, 0.4])[:, None, None, None] * (noise - 0.5)).clamp(0, 1)
    clean, adversarial = x[rows], y[rows]
    similarity, ratio, scores = MeanSSIM(), MeanPSNR(), LocalizationScores()
    similarity.update(clean, adversarial)
    ratio.update(clean, adversarial)
    scores.update(ssim_map(clean, adversarial), cam[rows])
    found = scores.compute()
    counts = {f"count of {name}": value for name, value in found.pop("counts").items()}
    return {"ssim": similarity.compute(), **ratio.compute(), **found, **counts}
