"""What a config may name, and that nothing is unpickled."""

import ast
import sys
from pathlib import Path

import pytest

import lit_adv
from lit_adv import cli, trust

CONFIG = """
model: {class_path: Crafting}
data:
  class_path: AdversarialDataModule
  init_args:
    source: {class_path: Digits, init_args: {image_size: 8}}
    victims: {a: {class_path: lit_adv.models.Classifier, init_args: {name: small_cnn, num_classes: 10, image_size: 8}}}
    attacks: {fgsm: FGSM}
trainer: {accelerator: cpu, logger: false, fast_dev_run: true}
"""


@pytest.fixture
def parse(tmp_path, monkeypatch, capsys):
    """Runs `lightning predict --print_config` on the config with options; gives the code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def parse(*options, last=("--print_config",)):
        monkeypatch.setattr(sys, "argv", ["lightning", "predict", "--config", "toy.yaml", *options, *last])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, "".join(capsys.readouterr())

    return parse


def module(folder, name):
    """A module that leaves a mark when it is imported."""
    mark = folder / f"{name}.mark"
    (folder / f"{name}.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "import pytorch_lightning as pl\n"
        "class Mine(pl.Callback):\n"
        "    pass\n"
        "class Task(pl.LightningModule):\n"
        "    needs_weights = False\n"
        "    def predict_step(self, batch, index):\n"
        "        return batch.label\n"
    )
    return mark


WAYS = [
    "--model={name}.Task",
    "--model.class_path={name}.Task",
    "--trainer.callbacks={name}.Mine",
    "--trainer.callbacks+={name}.Mine",
    "--trainer.callbacks=[{{class_path: {name}.Mine}}]",
    "--trainer.plugins={name}.Mine",
    "--data.attacks.other={name}.Mine",
    "--data.victims.b={{class_path: {name}.Task}}",
    "--data.source={name}.Task",
    "--trainer.logger={name}.Mine",
    "--config={{vars: {{way: {name}.Task}}, model: {{class_path: '${{vars.way}}'}}}}",
    "--data.help={name}.Task",
    "--config={{model: {{class_path: {name}.Task}}}}",
]


@pytest.mark.parametrize(("number", "way"), list(enumerate(WAYS)))
def test_a_stranger_is_refused_before_it_is_imported(parse, tmp_path, number, way):
    name = f"stranger_{number}"
    mark = module(tmp_path, name)
    code, said = parse(way.format(name=name))
    assert code == 2
    assert not mark.exists()
    assert name not in sys.modules
    # Lightning takes the name of a plugin for text, and the parser looks for no class under an interpolated name
    if "plugins" not in way and "vars" not in way:
        assert f"class_path: {name}." in said
        assert "--allow-any-class" in said


def test_the_flag_allows_it_for_that_run_alone(parse, tmp_path):
    mark = module(tmp_path, "stranger_allowed")
    option = "--trainer.callbacks=stranger_allowed.Mine"
    assert parse(option)[0] == 2
    assert not mark.exists()
    code, said = parse(option, "--allow-any-class")
    assert code == 0, said
    assert "class_path: stranger_allowed.Mine" in said
    assert mark.exists()
    # what was imported is known; what lies beside it is not
    code, said = parse("--trainer.callbacks+=stranger_allowed.another")
    assert code == 2
    assert "stranger_allowed, which is no known package" in said
    module(tmp_path, "stranger_after")
    assert parse("--trainer.callbacks=stranger_after.Mine")[0] == 2


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "subprocess.Popen", "builtins.eval", "pickle.load", "torch.load", "torch.hub.load"),
        *(
            "torch.utils.cpp_extension.load",
            "numpy.load",
            "torch.os.system",
            "lit_adv.app.run",
            "importlib.import_module",
        ),
        *("torch.serialization.pickle.loads", "jsonargparse.set_parsing_settings", "torch.jit.load"),
    ],
)
def test_nothing_that_runs_code_can_be_named(parse, name):
    for way in ("--model={name}", "--data.victims.b={{class_path: {name}}}", "--trainer.callbacks+={name}"):
        code, said = parse(way.format(name=name))
        assert code == 2, said
        # by the name of where it is defined
        assert name.rpartition(".")[2] in said
        assert "known are lit_adv, torch" in said


@pytest.mark.parametrize(
    "option",
    [
        "--trainer.callbacks=pytorch_lightning.callbacks.EarlyStopping",
        "--trainer.callbacks=lightning.pytorch.callbacks.DeviceStatsMonitor",
        "--data.victims.b={class_path: torch.nn.Identity}",
        "--trainer.logger=pytorch_lightning.loggers.CSVLogger",
        "--data.attacks.other=lit_adv.attacks.PGD",
        "--data.victims.b={class_path: torchvision.models.resnet.ResNet}",
    ],
)
def test_known_packages_pass_the_list(parse, option):
    said = parse(option)[1]
    assert "no known package" not in said
    assert "may name" not in said


def test_a_class_that_the_program_imported_is_known():
    with trust.only_known_classes([f"{__name__}.Here"], allow_any=False):
        pass
    with (
        pytest.raises(trust.ConfigError, match=r"class_path: subprocess\.Popen is of subprocess"),
        trust.only_known_classes(["subprocess.Popen"], allow_any=False),
    ):
        pass


class Here(trust.nn.Module):
    """Imported by whoever runs this test."""


# nothing is unpickled


SOURCES = sorted(
    path
    for folder in ("lit_adv", "callbacks", "benchmarks")
    for path in (Path(lit_adv.__file__).parent.parent / folder).rglob("*.py")
)
# modules whose readers run what a file holds; cifar.py says why, and checks the file's hash first
_READERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def unsafe(tree):
    """(line, what) of each call in a source file that could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in _READERS:
            yield node.lineno, f"from {node.module}"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        root, last = name.split(".")[0], name.split(".")[-1]
        if root in _READERS:
            yield node.lineno, name
        needs_weights_only = name == "torch.load" or last in ("load_state_dict_from_url", "get_state_dict")
        if needs_weights_only and options.get("weights_only") != "True":
            yield node.lineno, f"{name} without weights_only=True"
        if name in ("np.load", "numpy.load", "np.lib.format.read_array") and options.get("allow_pickle") != "False":
            yield node.lineno, f"{name} without allow_pickle=False"
        if name in ("torch.hub.load", "torch.jit.load", "torch.export.load", "torch.package.PackageImporter"):
            yield node.lineno, name
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and options.get("Loader") != "_Loader":
            yield node.lineno, name
        if name in ("eval", "exec", "compile", "pd.read_pickle", "os.system"):
            yield node.lineno, name
        if options.get("allow_pickle") == "True" or options.get("weights_only") == "False":
            yield node.lineno, f"{name} allows pickles"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(x)",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "torch.hub.load('a', 'b')",
        "weights.get_state_dict(progress=False)",
    ],
)
def test_the_scan_finds(text):
    assert list(unsafe(ast.parse(text)))


def test_nothing_is_unpickled():
    assert len(SOURCES) > 150
    found = [
        f"{path.parent.name}/{path.name}:{line}: {what}"
        for path in SOURCES
        for line, what in unsafe(ast.parse(path.read_text()))
    ]
    assert not found
