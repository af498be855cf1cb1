"""Every shipped config: that it parses, and that it says what the paper says."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lit_adv import cli, runs
from lit_adv.compose import compose
from lit_adv.models import classifier

CONFIGS = Path(__file__).parent.parent / "configs"
SETS = ("digits", "fashion_mnist", "cifar10", "tiny_imagenet", "imagenet")
# of two classes, or only for pairs of them; all four are the paper's on neutralisation
PAIR_SETS = ("mnist", "fashion_mnist", "cats_dogs", "malaria")
PAPER_VICTIMS = ["resnet50", "resnext50", "densenet121", "vgg19_bn"]
FOLDERS = dict.fromkeys((*SETS, *PAIR_SETS))
JOBS = sorted(str(p.relative_to(CONFIGS.parent)) for name in FOLDERS for p in (CONFIGS / name).rglob("*.yaml"))
# what is used by name in another config is no job
JOBS = [
    job
    for job in JOBS
    if "class_path" in compose(CONFIGS.parent / job).get("model", {}) and not job.endswith("/victim.yaml")
]
FRAGMENTS = sorted(
    str(p.relative_to(CONFIGS.parent)) for folder in ("loggers", "trainer") for p in (CONFIGS / folder).iterdir()
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def test_each_set_has_its_jobs():
    for name in SETS:
        jobs = {p.stem for p in (CONFIGS / name).glob("*.yaml")} - {"victim"}
        assert jobs >= {"redrl", "baseline_image", "baseline_delta", "ablation_a", "ablation_b", "ablation_c"}
        victims = {p.stem for p in (CONFIGS / name / "victims").iterdir()}
        small = name in ("digits", "fashion_mnist")
        assert victims >= ({"small_cnn", "resnet18"} if small else set(PAPER_VICTIMS))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_works_alone(run, job):
    code, out, err = run("fit", "--config", job, "--print_config")
    assert code == 0, err
    config = yaml.safe_load(out)
    assert config["model"]["class_path"].startswith("lit_adv.tasks.")
    assert config["data"]["class_path"].startswith("lit_adv.data.")
    assert "${" not in out


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_lies_on_any_job(run, fragment):
    code, out, err = run("fit", "--config", "configs/cifar10/redrl.yaml", "--config", fragment, "--print_config")
    assert code == 0, err
    for key, value in compose(fragment)["trainer"].items():
        found = yaml.safe_load(out)["trainer"][key]
        assert found["class_path"] == value["class_path"] if isinstance(value, dict) else found == value


@pytest.mark.parametrize("job", [job for job in JOBS if job.endswith("redrl.yaml")])
def test_victims_are_where_their_own_configs_put_them(job):
    folder = (CONFIGS.parent / job).parent
    for name, victim in compose(folder / "redrl.yaml")["data"]["init_args"]["victims"].items():
        config = compose(folder / "victims" / f"{name}.yaml")
        assert config["model"]["init_args"]["name"] == name
        if isinstance(victim, str):
            assert victim == f"{config['run_dir']}/checkpoints/best.ckpt"
        else:
            assert victim["init_args"]["weights"] == config["model"]["init_args"]["weights"] == "imagenet"


@pytest.mark.parametrize(
    ("name", "side"), [("fashion_mnist", 32), ("cifar10", 32), ("tiny_imagenet", 64), ("imagenet", 224)]
)
def test_the_attacks_are_those_of_table_2(name, side):
    attacks = compose(CONFIGS / name / "redrl.yaml")["data"]["init_args"]["attacks"]
    expected = {"deepfool": ("DeepFool", {"norm": "l2", "steps": 50, "overshoot": 0.02})}
    shared = {"norm": "linf", "step_size": 0.01, "steps": 100, "random_start": True}
    for eps in (4, 8, 16):
        expected[f"pgd/{eps}"] = ("PGD", {**shared, "eps": f"{eps}/255"})
        linf = {
            "eps": f"{eps}/255",
            "c": 5,
            "learning_rate": 0.005,
            "steps": 100,
            "confidence": 0,
            "variant": "bounded",
        }
        expected[f"cw_linf/{eps}"] = ("CarliniWagnerLinf", linf)
        for size in (side // 8, side // 4):
            patch = {"size": size, "eps": f"{eps}/255", "step_size": 0.01, "steps": 100}
            expected[f"patch/{eps}x{size}"] = ("BoundedPatch", patch)
    for c in (100, 1000):
        l2 = {
            "c": c,
            "learning_rate": 0.01,
            "steps": 1000,
            "search_steps": 0,
            "confidence": 0,
            "box": "tanh",
            "abort_early": False,
        }
        expected[f"cw_l2/{c}"] = ("CarliniWagnerL2", l2)
    assert {key: (value["class_path"], value["init_args"]) for key, value in attacks.items()} == expected


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_redrl_is_trained_as_in_section_4_6(name):
    config = compose(CONFIGS / name / "redrl.yaml")
    model = config["model"]["init_args"]
    assert model["learning_rate"] == {"cifar10": 3.5e-4, "tiny_imagenet": 1.7e-4}[name]
    weights = [model[f"weight_{part}"] for part in ("reconstruction", "features", "classification", "decay")]
    assert weights == [0.01, 0.1, 1.0, 5e-4]
    assert (model["width"], model["blocks"], model["recognizer"]) == (64, 23, "resnet18")
    assert (model["warmup_epochs"], model["milestones"], model["schedule"]) == (9, [40, 70, 90], "paper")
    assert (config["trainer"]["max_epochs"], config["data"]["init_args"]["batch_size"]) == (100, 128)
    assert list(config["data"]["init_args"]["victims"]) == PAPER_VICTIMS
    victim = compose(CONFIGS / name / "victims" / "resnet50.yaml")
    assert victim["model"]["init_args"]["milestones"] == [25, 40]
    assert victim["trainer"]["max_epochs"] == 50


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("job", "changes"),
    [
        ("baseline_image", {"inputs": "image"}),
        ("baseline_delta", {"inputs": "delta"}),
        ("ablation_a", {"weight_features": 0.0, "weight_classification": 0.0}),
        ("ablation_b", {"weight_classification": 0.0}),
        ("ablation_c", {"weight_features": 0.0}),
    ],
)
def test_baselines_and_ablations_change_that_alone(name, job, changes):
    redrl, other = compose(CONFIGS / name / "redrl.yaml"), compose(CONFIGS / name / f"{job}.yaml")
    expected = {f"model.init_args.{key}": value for key, value in changes.items()}
    if name == "digits":
        expected.pop("model.init_args.weight_features", None)  # has no feature loss to begin with
    assert {key: new for key, _, new in runs.differences(redrl, other)} == expected


def test_a_missing_victim_is_made_by_a_shipped_config(run):
    code, _, err = run("fit", "--config", "configs/cifar10/redrl.yaml")
    assert code == 2
    for name in PAPER_VICTIMS:
        assert f"lightning fit --config configs/cifar10/victims/{name}.yaml" in err


@pytest.mark.slow
def test_the_digits_jobs_run_one_after_the_other(run, tmp_path):
    few = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    code, _, err = run("fit", "--config", "configs/digits/victims/small_cnn.yaml", "--data.train_limit=60", *few)
    assert code == 0, err
    source = "--data.init_args.source.init_args"
    few += [
        f"{source}.train_limit=40",
        f"{source}.test_limit=10",
        "--data.attacks.cw_l2.init_args.steps=5",
        "--run_dir=here",
    ]
    code, out, err = run("fit", "--config", "configs/digits/redrl.yaml", *few)
    assert code == 0, err
    assert "best checkpoint: here/checkpoints/best.ckpt (val/recognition" in out
    code, out, err = run("test", "--config", "here/config.yaml", "--ckpt_path", "best")
    assert code == 0, err
    assert (tmp_path / "here/results.csv").is_file()
    assert list((tmp_path / "here/figures").rglob("*.png"))
    # the saved config is whole: it can be run again elsewhere
    code, _, err = run("fit", "--config", "here/config.yaml", "--run_dir=there")
    assert code == 0, err


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_many_is_one_list_of_attacks_by_family(name):
    from lit_adv import attacks
    from lit_adv.attacks.radius import parse

    def made(given):
        fields = given["init_args"].items()
        read = {key: parse(value) if "/" in str(value) else value for key, value in fields}
        return getattr(attacks, given["class_path"])(**read)

    found = compose(CONFIGS / name / "many.yaml")["data"]["init_args"]["attacks"]
    assert list(found) == list(compose(CONFIGS / "attacks" / "many.yaml"))
    families = [attacks.attack_family(made(given)) for given in found.values()]
    assert len(found) >= 12
    assert len(set(families)) >= 6
    # one after the other, so that the figure can part them
    assert len(set(families)) == 1 + sum(one != other for one, other in itertools.pairwise(families))


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_attribution_has_heads_and_victims_to_tell_apart(name):
    config = compose(CONFIGS / name / "attribution.yaml")
    assert config["model"]["init_args"]["heads"] == ["victim", "budget"]
    victims = config["data"]["init_args"]["victims"]
    assert len(victims) >= 3  # two are left where one is held out
    for victim, path in victims.items():
        assert compose(CONFIGS / name / "victims" / f"{victim}.yaml")["run_dir"] in path


@pytest.mark.parametrize("side", [224, 32])
def test_the_papers_masks_have_the_papers_areas(side):
    import torch

    from lit_adv.attacks import regions

    given = compose(CONFIGS / "cifar10" / "transferability.yaml")["trainer"]["callbacks"][1]["init_args"]["regions"]
    made = {name: getattr(regions, each["class_path"])(**each["init_args"]) for name, each in given.items()}
    areas = [int(region(torch.zeros(1, 3, side, side), 0).sum()) for region in made.values()]
    expected = {
        224: [8100, 14400, 22500, 8560, 14076, 22620, 8530, 14049, 22579],
        # squares of 12, 18 and 22, frames of 1, 2 and 4 pixels a side
        32: [144, 324, 484, 124, 240, 448, 174, 287, 461],
    }
    assert areas == expected[side]


@pytest.mark.parametrize("name", PAIR_SETS)
def test_neutralisation_is_of_the_papers_network_pairs_and_attack(name):
    text = (CONFIGS / name / "neutralization.yaml").read_text()
    config = compose(CONFIGS / name / "neutralization.yaml")
    victims = {path.stem: compose(path) for path in (CONFIGS / name / "victims").iterdir()}
    assert config["model"] == victims["vgg16"]["model"]
    assert config["model"]["init_args"]["name"] == "vgg16"
    settings = config["trainer"]["callbacks"][1]["init_args"]
    # both ways; Table I names them
    expected = [[1, 2], [2, 1]] if name == "fashion_mnist" else [[1, 0], [0, 1]]
    assert [pair for pair in settings["pairs"] if pair in expected] in (expected, expected[::-1])
    eps = "8/255" if name in ("cats_dogs", "malaria") else 0.3
    assert settings["attack"] == {"class_path": "FGSM", "init_args": {"eps": eps}}
    # by default the last rectified maps of any network; where these are small, the comment names larger ones
    assert "layer" not in settings
    named = re.search(r"init_args\.layer=model\.([\w.]+)", text)
    assert bool(named) == (config["data"]["init_args"].get("image_size") == 32)
    if named:
        made, sizes = classifier("vgg16", 2, image_size=32, in_channels=1).eval(), {}
        for layer in ("network.features.29", named[1]):
            module = made.get_submodule(layer)
            assert isinstance(module, nn.ReLU)
            module.register_forward_hook(lambda m, inputs, output, layer=layer: sizes.update({layer: output.shape[2:]}))
        made(torch.zeros(1, 1, 32, 32))
        assert list(sizes.values()) == [(4, 4), (2, 2)]
    # the smaller network of the comment is of the same data
    assert "small_cnn" in victims
    assert victims["small_cnn"]["data"]["class_path"] == config["data"]["class_path"]


@pytest.mark.parametrize("name", PAIR_SETS)
def test_the_commands_above_neutralisation_name_what_there_is(name):
    path = CONFIGS / name / "neutralization.yaml"
    text = path.read_text()
    fitted = re.search(r"lightning fit --config (\S+)", text)[1]
    tested = re.search(r"--ckpt_path (\S+)", text)[1]
    assert tested == compose(CONFIGS.parent / fitted)["run_dir"] + "/checkpoints/best.ckpt"
    assert f"lightning test --config configs/{name}/neutralization.yaml" in text
    assert compose(path)["run_dir"] == f"runs/{name}/neutralization"
