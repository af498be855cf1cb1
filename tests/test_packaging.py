"""What is installed: the packages of pyproject.toml, and a wheel that works."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lit_adv

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_of_the_tree_is_listed(project):
    folders = {
        file.parent for top in ("lit_adv", "callbacks", "configs") for file in ROOT.glob(f"{top}/**/__init__.py")
    }
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    in_python = {name if name.startswith("lit_adv") else f"lit_adv.{name}" for name in names}
    assert set(project["tool"]["setuptools"]["packages"]) == in_python


def test_constraints_are_exact_satisfy_the_ranges_and_name_no_host(project):
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)] == []
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}
    assert not [name for name in pins if name.startswith(("nvidia", "cuda"))]
    wanted = [Requirement(line) for line in project["project"]["dependencies"]]
    wanted += [Requirement(line) for line in project["project"]["optional-dependencies"]["dev"]]
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{requirement} is pinned to {pins[name]}"


def test_the_citation_names_five_sources_and_this_version(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert len(citation["references"]) == 5
    assert citation["version"] == lit_adv.__version__
    assert citation["license"] == project["project"]["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]


def test_what_a_contributor_is_told_to_open_and_run_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:lit_adv|docs|tests|benchmarks|configs|callbacks)/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or "yours" in path, path
    targets = (ROOT / "Makefile").read_text()
    for line in re.findall(r"^\$ make ([a-z ]+?)(?:\s+#|$)", text, re.MULTILINE):
        assert all(f"\n{target}:" in targets for target in line.split()), line


@pytest.mark.parametrize("pattern", [".github/**/*.yml", ".pre-commit-config.yaml"])
def test_the_files_of_the_host_are_well_formed(pattern):
    files = list(ROOT.glob(pattern))
    assert files
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict), file


def test_callbacks_cannot_be_imported_as_a_second_copy():
    done = subprocess.run([sys.executable, "-c", "import callbacks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "import lit_adv.callbacks instead" in done.stderr


@pytest.mark.slow
def test_a_wheel_holds_everything_and_runs_from_an_empty_folder(tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    # built from a copy, as a build leaves its folders behind
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    for folder in ("lit_adv", "callbacks", "configs"):
        for file in ROOT.glob(f"{folder}/**/*"):
            copy(file, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(p.relative_to(ROOT)) for p in ROOT.glob("lit_adv/**/*.py")}
    expected |= {
        f"lit_adv/{p.relative_to(ROOT)}" for p in (*ROOT.glob("callbacks/**/*.py"), *ROOT.glob("configs/**/*.yaml"))
    }
    assert expected - names == set()
    assert wheel.name.split("-")[1] == lit_adv.__version__
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert {name.split("/")[0] for name in names} == {"lit_adv", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}

    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    # -S drops this environment's editable install; its dependencies come back by path
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), dependencies])}
    code = """
import importlib.resources, importlib.util, lit_adv, lit_adv.callbacks
assert lit_adv.__file__.startswith({target!r}), lit_adv.__file__
assert importlib.util.find_spec("callbacks") is None and importlib.util.find_spec("configs") is None
assert (importlib.resources.files("lit_adv.configs") / "cifar10" / "redrl.yaml").is_file()
"""
    run = {"cwd": tmp_path, "env": environment, "check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-S", "-c", code.format(target=str(target))], **run)
    done = subprocess.run([sys.executable, "-S", "-m", "lit_adv", "--help"], **run)
    assert "usage: lightning" in done.stdout


def copy(file: Path, folder: Path) -> None:
    if file.is_file() and "__pycache__" not in file.parts:
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
