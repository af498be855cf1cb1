"""The house rules that hold over the whole package: imports run one way, public class names are unique."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import lit_adv

ROOT = Path(__file__).parent.parent
# left to right; a room may import the rooms to its left, `plots` aside
ROOMS = [
    {"attacks", "models", "metrics", "plots"},
    {"explain"},
    {"evaluation", "masking_verdict"},
    {"masking"},
    {"data"},
    {"tasks"},
    {"callbacks"},
    {
        "cli",
        "app",
        "crafting_commands",
        "diagnosis",
        "html_report",
        "ranks",
        "runs",
        "slurm",
        "trust",
        "wandb_dashboard",
        "wandb_logger",
        "__main__",
    },
]
# import nothing of the package, so that any room and the command's first line may use them
FREE = {"compose", "bolts", "dashboard", "files"}
FILES = sorted([*ROOT.glob("lit_adv/**/*.py"), *ROOT.glob("callbacks/**/*.py")])


def room(parts: tuple[str, ...]) -> str | None:
    return parts[1] if len(parts) > 1 and parts[0] == "lit_adv" else None


def module(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "lit_adv" else ("lit_adv", *parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported_modules(file: Path) -> list[tuple[str, ...]]:
    found = []
    package = module(file) if file.name == "__init__.py" else module(file)[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = (*start, *(node.module.split(".") if node.module else ()))
            found += [(*base, alias.name) for alias in node.names]
    return found


def rank(name: str) -> int:
    return next(number for number, names in enumerate(ROOMS) if name in names)


def test_every_module_has_a_room():
    rooms = {room(module(file)) for file in FILES} - {None}
    assert rooms - set().union(*ROOMS) - FREE == set()
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_room_imports_nothing_to_its_right(file):
    own = room(module(file))
    others = {room(parts) for parts in imported_modules(file)} - {None, own, "configs"} - FREE
    if own is None or own in FREE:
        # lit_adv/__init__.py and the free modules
        assert others == ({"evaluation", "masking"} if own is None else set())  # which it loads on first use
        return
    wrong = {other for other in others if rank(other) > rank(own) or (rank(other) == rank(own) and rank(own) < 6)}
    if own not in ("callbacks", "cli", "app", "runs", "html_report"):
        wrong |= others & {"plots"}
    assert wrong == set(), f"{own} imports {wrong}"


def test_attacks_know_no_lightning_and_no_file():
    files = [file for file in FILES if room(module(file)) == "attacks"]
    roots = {parts[0] for file in files for parts in imported_modules(file)}
    assert roots & {"pytorch_lightning", "lightning_fabric", "torchvision", "pathlib"} == set()


def public_classes():
    classes = {}
    for package in ("attacks", "models", "metrics", "explain", "data", "tasks", "callbacks", "plots"):
        imported = importlib.import_module(f"lit_adv.{package}")
        modules = [
            imported,
            *(importlib.import_module(f"lit_adv.{package}.{m.name}") for m in pkgutil.iter_modules(imported.__path__)),
        ]
        for part in modules:
            for name, value in vars(part).items():
                if (
                    inspect.isclass(value)
                    and not name.startswith("_")
                    and value.__module__.startswith(lit_adv.__name__)
                ):
                    classes.setdefault(value.__name__, set()).add(value)
    return classes


def test_class_names_are_unique_so_that_configs_may_use_them_alone():
    classes = public_classes()
    assert {"PGD", "REDRL", "CIFAR10", "ReconstructionGrid"} <= set(classes)
    assert {name: found for name, found in classes.items() if len(found) > 1} == {}
