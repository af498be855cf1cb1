"""Turns what the parser says about a bad config into one readable message with the nearest valid names."""

import argparse
import dis
import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from lit_adv.attacks import Attack

_PACKAGE_FOLDERS = (Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent / "callbacks")
_CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}
# Where a config names a class, what the class must be.
_BASES = {
    "model": pl.LightningModule,
    "data": pl.LightningDataModule,
    "source": pl.LightningDataModule,
    "callbacks": pl.Callback,
    "logger": Logger,
    "attacks": Attack,
}


def explain(message: str, parser: argparse.ArgumentParser, tree: Mapping[str, Any]) -> str:
    """One message for what is wrong with a config.

    Args:
        message: The parser's own words.
        parser: The subcommand's parser, for the options there are.
        tree: The config that was parsed, files and command line together, as nested mappings.
    """
    if missing := re.search(r"the following arguments are required: (.*)", message):
        names = ", ".join(name.rpartition(".")[2] for name in missing[1].split(", "))
        return f"{names} must be given (--config FILE names them; configs/ has one file a job)"
    # the parser complains of one thing; what it does not mention it has accepted
    found = (text for name, text in _unknown_names(tree, parser) if name in message)
    return next(found, None) or _shorten(message, tree)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean a or b?`, or what there is when nothing is near."""
    by_lower = {n.lower(): n for n in sorted(set(known))}
    near = [by_lower[n] for n in difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.6)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(by_lower) <= 25:
        return f"there are {', '.join(by_lower.values())}"
    far = difflib.get_close_matches(name.lower(), list(by_lower), n=5, cutoff=0.1)
    return f"the nearest of {len(by_lower)} are {', '.join(by_lower[n] for n in far)}"


def tree_of(configs: Iterable[Mapping[str, Any]], arguments: Iterable[str]) -> dict[str, Any]:
    """Configs and dotted options (`--trainer.max_epochs=3`) as one nested mapping, the later ones on top."""
    tree: dict[str, Any] = {}
    for config in configs:
        tree = _laid_on(tree, config)
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            continue
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        nested: Any = value
        for part in reversed(option[2:].split(".")):
            nested = {part: nested}
        tree = _laid_on(tree, nested)
    return tree


def said_by_us(error: BaseException) -> bool:
    """Whether the exception is a `raise` statement of lit_adv's own code, hence a message for the user, not a mistake in
    the program. An OSError counts wherever our code called the system."""
    root = _root(error)
    expected = isinstance(root, (ValueError, OSError, RuntimeError, TypeError, KeyError))
    file = Path(_last_frame(root)[0]).resolve() if root.__traceback__ else Path()
    ours = any(file.is_relative_to(folder) for folder in _PACKAGE_FOLDERS)
    return expected and ours and (isinstance(root, OSError) or is_deliberate(root))


def is_deliberate(error: BaseException) -> bool:
    """Whether the exception was raised by a `raise` statement in Python, in whatever package."""
    root = _root(error)
    return root.__traceback__ is not None and _last_frame(root)[1] == dis.opmap["RAISE_VARARGS"]


def message_of(error: BaseException) -> str:
    """What the code that raised the exception said, without what the parser wraps around it."""
    root = _root(error)
    # str() of a KeyError is the repr of its message
    return str(root.args[0] if isinstance(root, KeyError) and root.args else root) or type(root).__name__


def _root(error: BaseException) -> BaseException:
    """The exception inside those that the parser raises from it."""
    while error.__cause__ is not None and error.__traceback__ and "jsonargparse" in Path(_last_frame(error)[0]).parts:
        error = error.__cause__
    return error


def _last_frame(error: BaseException) -> tuple[str, int]:
    """File and instruction where an exception was raised."""
    frame = error.__traceback__
    assert frame is not None
    while frame.tb_next is not None:
        frame = frame.tb_next
    return frame.tb_frame.f_code.co_filename, frame.tb_frame.f_code.co_code[frame.tb_lasti]


def _unknown_names(tree: Mapping[str, Any], parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    options = {option for action in parser._actions for option in (action.dest, *_long(action.option_strings))}
    top = {option.split(".")[0] for option in options} - {"help"}
    groups: dict[str, set[str]] = {}
    for option in options:
        group, dot, name = option.partition(".")
        if dot:
            groups.setdefault(group, set()).add(name.split(".")[0])
    for key, value in tree.items():
        key = key.removesuffix("+")
        if key not in top:
            yield key, f"{key}: no such option; {nearest(key, top)}"
        elif key in _BASES:
            yield from _unknown_classes(value, key, _BASES[key])
        elif key in groups and isinstance(value, Mapping):
            for name, inner in value.items():
                name = name.removesuffix("+")
                if name not in groups[key]:
                    yield name, f"{key}.{name}: no such option; {nearest(name, groups[key])}"
                yield from _unknown_classes(inner, f"{key}.{name}", _BASES.get(name))


def _unknown_classes(value: Any, path: str, base: type | None) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown_classes(item, f"{path}.{number}", base)
    elif isinstance(value, str) and base is not None and re.fullmatch(r"[A-Za-z_][\w.]*", value) and value != "null":
        if value.lower() not in ("true", "false", "") and not value.endswith((".yaml", ".yml")):
            yield from _unknown_class(value, path, base)
    elif isinstance(value, Mapping):
        name = value.get("class_path")
        if name is None:
            for key, inner in value.items():
                below = _BASES.get(key) or (base if path.endswith("attacks") else None)
                yield from _unknown_classes(inner, f"{path}.{key}", below)
            return
        wrong = list(_unknown_class(str(name), path, base))
        yield from wrong
        if wrong:
            return
        arguments = {**{k: v for k, v in value.items() if k not in _CLASS_KEYS}, **(value.get("init_args") or {})}
        known = _parameters(_class(str(name)))
        for key, inner in arguments.items():
            key = key.removesuffix("+")
            if known and key not in known:
                yield key, f"{path}.{key}: {str(name).rpartition('.')[2]} has no argument {key!r}; {nearest(key, known)}"
            yield from _unknown_classes(inner, f"{path}.{key}", _BASES.get(key))


def _unknown_class(name: str, path: str, base: type | None) -> Iterator[tuple[str, str]]:
    if _class(name) is None:
        names = [c.__name__ for c in _subclasses(base)] if base else list(_classes())
        yield name, f"{path}: there is no class {name}; {nearest(name.rpartition('.')[2], names)}"


def _class(name: str) -> type | None:
    if "." not in name:
        return _classes().get(name)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
    # a function that returns the object is as good as a class; its arguments are left to the parser
    return found if isinstance(found, type) else object if callable(found) else None


def _classes() -> dict[str, type]:
    bases = (*_BASES.values(), torch.nn.Module)
    return {c.__name__: c for base in bases for c in _subclasses(base)}


def _subclasses(base: type) -> list[type]:
    found, seen = [base], {base}
    for parent in found:
        new = [c for c in parent.__subclasses__() if c not in seen]
        seen.update(new)
        found += new
    public = [c for c in found if not c.__name__.startswith("_") and not inspect.isabstract(c)]
    own = [c for c in public if c.__module__.split(".")[0] == "lit_adv"]
    return own + [c for c in public if c not in own]


def _parameters(cls: type | None) -> set[str]:
    """The arguments of a class, empty where they cannot be listed."""
    names: set[str] = set()
    for parent in cls.__mro__ if cls is not None else ():
        if "__init__" not in vars(parent):
            continue
        kinds = inspect.signature(parent.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in kinds):
            return names
    return set()


def _shorten(message: str, tree: Mapping[str, Any]) -> str:
    """The keys and the last words of the parser's nested report."""
    keys, leaves, value = [], [], None
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith(("Does not validate against", "Subtypes:", "Errors:", "Given value type:")) or not text:
            continue
        if text.startswith("Given value:"):
            value = value if value is not None else text.removeprefix("Given value:").strip()
            continue
        if match := re.match(r'Parser key "([^"]+)":\s*(.*)', text):
            keys.append(match[1])
            text = match[2]
        if text and "NoneType" not in text and not text.startswith("Expected a path but"):
            leaves.append(re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text))
    leaves = list(dict.fromkeys(leaves)) or [message.splitlines()[0]]
    where = _full_path(keys, tree, leaves[-1])
    if value is not None and len(value) < 60 and not any("got" in leaf.lower() for leaf in leaves):
        leaves[-1] += f", got {value}"
    return f"{where}: {'; or '.join(leaves)}" if where else "; ".join(leaves)


def _full_path(keys: list[str], tree: Mapping[str, Any], leaf: str) -> str:
    wanted = ".".join(keys).split(".") if keys else []
    found = []
    for path, value in _leaves(tree):
        position = iter(path)
        if path and wanted and path[-1] == wanted[-1] and all(key in position for key in wanted):
            found.append((str(value) in leaf, path))
    matching = [path for hit, path in found if hit] or [path for _, path in found]
    return ".".join(matching[0] if len(matching) == 1 else wanted)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        below = path if key == "init_args" else (*path, str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, below)
        else:
            yield below, value


def _laid_on(tree: Any, over: Any) -> Any:
    if not isinstance(tree, Mapping) or not isinstance(over, Mapping):
        if isinstance(tree, Mapping) and isinstance(over, str) and over and "class_path" in tree:
            return {"class_path": over}
        if isinstance(over, Mapping) and isinstance(tree, str) and tree and "class_path" not in over:
            return {"class_path": tree, **over}
        return over
    return {**tree, **{key: _laid_on(tree[key], value) if key in tree else value for key, value in over.items()}}


def _long(options: Iterable[str]) -> list[str]:
    return [option.removeprefix("--") for option in options if option.startswith("--")]
