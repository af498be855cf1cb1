"""Turns what the parser says about a bad config into one readable message with the nearest valid names."""

import argparse
import difflib
import dis
import importlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.loggers import Logger

from lit_adv.attacks import Attack, Region

_PACKAGE_FOLDERS = (Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent / "callbacks")
_CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}
# Where a config names a class, what the class must be.
_BASES: dict[str, type] = {
    "model": pl.LightningModule,
    "data": pl.LightningDataModule,
    "source": pl.LightningDataModule,
    "callbacks": pl.Callback,
    "logger": Logger,
    "attacks": Attack,
}

# Lines of the parser's report that carry nothing for the reader.
_WRAPPING = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Problem with given class_path",
    "Not a valid subclass",
    "Subclass types expect",
    "a class path (str)",
    "a dict with class_path",
    "a dict without class_path",
    "a dict with parameters",
    "Expected a path but",
)


def explain(message: str, parser: argparse.ArgumentParser, tree: Mapping[str, Any]) -> str:
    """One message for what is wrong with a config.

    Args:
        message: The parser's own words.
        parser: The subcommand's parser, for the options there are.
        tree: The config that was parsed, files and command line together, as nested mappings.
    """
    if missing := re.search(r"the following arguments are required: (.*)", message):
        inside = re.search(
            r'Parser key "([^"]+)":(?:.|\n)*Problem with given class_path .*\.(\w+)\':', message[: missing.start()]
        )
        if inside:
            option = f"{inside[1]}.{missing[1].split(', ')[0]}"
            return f"{option} must be given, {inside[2]} needs it (--{option}=VALUE)"
        names = ", ".join(name.rpartition(".")[2] for name in missing[1].split(", "))
        return f"{names} must be given (--config FILE names them; configs/ has one file a job)"
    data = tree.get("data")
    for place in (data, data.get("init_args")) if isinstance(data, Mapping) else ():
        victims = place.get("victims") if isinstance(place, Mapping) else None
        if isinstance(victims, str) and "victims" in message:
            # the parser takes the text for the name of a YAML file, and reads the checkpoint as one
            return f"data.victims must be name: path, got {victims!r} (--data.victims.NAME=PATH)"
    nested = re.search(r"NestedArg\(key='(attacks|regions)\.([^'.]+)(?:\.([^']*))?', val='([^']*)'\)", message)
    if nested and (wrong := _wrong_entry(nested[1], nested[2], nested[3] or "", nested[4], data)):
        return wrong
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
    far = difflib.get_close_matches(name.lower(), list(by_lower), n=5, cutoff=0.1) or list(by_lower)[:5]
    return f"the nearest of {len(by_lower)} are {', '.join(by_lower[n] for n in far)}"


def _wrong_entry(group: str, name: str, field: str, value: str, data: Any) -> str:
    """What is wrong with `--data.GROUP.NAME.FIELD=VALUE` or `--data.GROUP.NAME=VALUE`; empty where it is the value."""
    path, field = f"data.{group}.{name}", field.removeprefix("init_args.")
    there: dict[str, str] = {}
    for place in (data, data.get("init_args")) if isinstance(data, Mapping) else ():
        entries = place.get(group) if isinstance(place, Mapping) else None
        for key, inner in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(inner, Mapping) and "class_path" in inner:
                there[str(key)] = str(inner["class_path"])
    if not field:
        return f"{path}: must be the name of a class, got {_brief(value)} (--{path}.FIELD=VALUE changes a field)"
    if name not in there:
        hint = nearest(name, there) if there else "there are none"
        return f"{path}: nothing of that name has a field {field} to change; {hint} (--{path}=CLASS before it adds one)"
    known = _parameters(_class(there[name]))
    if not known or field.split(".")[0] in known | _CLASS_KEYS:
        return ""
    return f"{path}.{field}: {there[name].rpartition('.')[2]} has no argument {field!r}; {nearest(field, known)}"


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


def refused_nulls(config: Any, path: str = "") -> Iterator[str]:
    """What is null in a parsed config where the class takes none: the parser lets it pass, as if it were not given.

    Args:
        config: Mappings and lists; a mapping with `class_path` has its arguments in `init_args`.
        path: Where in the whole config it stands.

    Yields:
        One message an argument.
    """
    if isinstance(config, list):
        for number, value in enumerate(config):
            yield from refused_nulls(value, f"{path}.{number}")
        return
    inner = vars(config) if isinstance(config, Namespace) else config
    if not isinstance(inner, Mapping):
        return
    arguments = inner.get("init_args")
    if isinstance(inner.get("class_path"), str) and isinstance(arguments, Namespace | Mapping):
        cls = _class(inner["class_path"])
        for name, value in (vars(arguments) if isinstance(arguments, Namespace) else arguments).items():
            if value is None and (problem := _refuses_null(cls, name)):
                yield f"{path}.{name}: {problem}"
            yield from refused_nulls(value, f"{path}.{name}")
        return
    for name, value in inner.items():
        yield from refused_nulls(value, f"{path}.{name}" if path else str(name))


def _refuses_null(cls: Any, name: str) -> str:
    """Why an argument of a class may not be null; empty where it may, or where nothing is known of it."""
    if not isinstance(cls, type):
        return ""
    for base in cls.__mro__:
        parameter = inspect.signature(base).parameters.get(name) if "__init__" in vars(base) else None
        if parameter is None:
            continue
        try:
            kind = get_type_hints(vars(base)["__init__"]).get(name, Any)
        except Exception:  # a name that only type checkers import: nothing is known
            return ""
        allowed = type(None) in get_args(kind) or kind in (Any, None, type(None), object) or parameter.default is None
        if allowed or isinstance(kind, TypeVar):
            return ""
        default = parameter.default
        remedy = "give a value" if default is inspect.Parameter.empty else f"leave it out for {default!r}"
        return f"{cls.__name__} needs {getattr(kind, '__name__', kind)}, got null ({remedy})"
    return ""


def said_by_us(error: BaseException) -> bool:
    """Whether lit_adv's own code raised the exception on purpose: a message for the user, not a mistake in the program.

    An OSError counts wherever our code called the system, through Python's own library or not.
    """
    root = _root(error)
    if isinstance(root, OSError):
        files = [file for file, _ in _frames(root) if not _is_of_python(file)]
        return bool(files) and _is_ours(files[-1])
    expected = isinstance(root, (ValueError, RuntimeError, TypeError, KeyError))
    return expected and is_deliberate(root) and _is_ours(_frames(root)[-1][0])


def is_deliberate(error: BaseException) -> bool:
    """Whether the exception was raised by a `raise` statement in Python, in whatever package."""
    frames = _frames(_root(error))
    return bool(frames) and frames[-1][1] == dis.opmap["RAISE_VARARGS"]


def message_of(error: BaseException) -> str:
    """What the code that raised the exception said, without what the parser wraps around it."""
    root = _root(error)
    # str() of a KeyError is the repr of its message
    return str(root.args[0] if isinstance(root, KeyError) and root.args else root) or type(root).__name__


def _root(error: BaseException) -> BaseException:
    """The exception inside those that the parser raises from it."""
    while error.__cause__ is not None and any("jsonargparse" in Path(file).parts for file, _ in _frames(error)[-1:]):
        error = error.__cause__
    return error


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """File and instruction of each frame that the exception went through, the one that raised it last."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append((code.co_filename, code.co_code[traceback.tb_lasti]))
        traceback = traceback.tb_next
    return frames


def _is_ours(file: str) -> bool:
    return any(Path(file).resolve().is_relative_to(folder) for folder in _PACKAGE_FOLDERS)


def _is_of_python(file: str) -> bool:
    path = Path(file)
    return file.startswith("<frozen") or (
        path.is_relative_to(sysconfig.get_path("stdlib")) and "site-packages" not in path.parts
    )


def _unknown_names(tree: Mapping[str, Any], parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    options = {option for action in parser._actions for option in (action.dest, *_long(action.option_strings))}
    top = {option.split(".")[0] for option in options} - {"help"}
    groups: dict[str, set[str]] = {}
    for option in options:
        group, dot, name = option.partition(".")
        if dot:
            groups.setdefault(group, set()).add(name.split(".")[0])
    for key, value in tree.items():
        key = str(key).removesuffix("+")
        if key not in top:
            yield key, f"{_key(key)}: no such option; {nearest(key, top)}"
        elif key in _BASES:
            yield from _unknown_classes(value, key, _BASES[key])
        elif key in groups and isinstance(value, Mapping):
            for name, inner in value.items():
                name = str(name).removesuffix("+")
                if name not in groups[key]:
                    yield name, f"{key}.{_key(name)}: no such option; {nearest(name, groups[key])}"
                yield from _unknown_classes(inner, f"{key}.{_key(name)}", _BASES.get(name))


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
                yield from _unknown_classes(inner, f"{path}.{_key(key)}", below)
            return
        wrong = list(_unknown_class(str(name), path, base))
        yield from wrong
        if wrong:
            return
        # the command line leaves out init_args: the same argument may stand at both places
        arguments = [(k, v) for k, v in value.items() if k not in _CLASS_KEYS]
        given = value.get("init_args") or {}
        if not isinstance(given, Mapping):
            yield "init_args", f"{path}.init_args: the arguments must be a mapping, name: value, got {_brief(given)}"
            return
        arguments += given.items()
        known = _parameters(_class(str(name)))
        for key, inner in arguments:
            key = str(key).removesuffix("+")
            if known and key not in known:
                yield (
                    key,
                    f"{path}.{_key(key)}: {_cut(str(name).rpartition('.')[2])} has no argument {_brief(key)}; "
                    f"{nearest(key, known)}",
                )
            yield from _unknown_classes(inner, f"{path}.{_key(key)}", _BASES.get(key))


def _unknown_class(name: str, path: str, base: type | None) -> Iterator[tuple[str, str]]:
    if _class(name) is None:
        names = [c.__name__ for c in _subclasses(base)] if base else list(_classes())
        yield name, f"{path}: there is no class {_cut(name)}; {nearest(name.rpartition('.')[2], names)}"


def _class(name: str) -> type | None:
    if "." not in name:
        return _classes().get(name)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, TypeError, ValueError):  # the last two of names such as `.x` and `..`
        return None
    # a function that returns the object is as good as a class; its arguments are left to the parser
    return found if isinstance(found, type) else object if callable(found) else None


def _classes() -> dict[str, type]:
    bases = (*_BASES.values(), Region, torch.nn.Module)
    # such as the techniques of a callback, of which no base is listed here
    own = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "lit_adv"]
    named = {name: found for module in own for name, found in vars(module).items() if isinstance(found, type)}
    return {**named, **{found.__name__: found for base in bases for found in reversed(_subclasses(base))}}


def _subclasses(base: type) -> list[type]:
    found: list[type] = [base]
    seen = {base}
    for parent in found:
        children: list[type] = type.__subclasses__(parent)
        found += [child for child in children if child not in seen]
        seen.update(children)
    public = [c for c in found if not c.__name__.startswith("_") and not inspect.isabstract(c)]
    own = [c for c in public if c.__module__.split(".")[0] == "lit_adv"]
    return own + [c for c in public if c not in own]


def _parameters(cls: type | None) -> set[str]:
    """The arguments that the parser accepts for a class, empty where they cannot be listed."""
    if cls is None or cls is object:
        return set()
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, "of", fail_untyped=False)
    except Exception:  # whatever the parser cannot read it cannot have refused by name
        return set()
    return {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("of.")}


def _shorten(message: str, tree: Mapping[str, Any]) -> str:
    """The keys and the last words of the parser's nested report."""
    keys, leaves, value = [], [], None
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith(_WRAPPING) or not text:
            continue
        if text.startswith("Given value:"):
            value = value if value is not None else text.removeprefix("Given value:").strip()
            continue
        if match := re.match(r'Parser key "([^"]+)":\s*(.*)', text):
            keys.append(match[1])
            text = match[2]
        if text and "NoneType" not in text and not text.startswith(_WRAPPING):
            text = re.sub(r"^Not of type \w+: ", "", text)
            text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
            leaves.append(text.replace("Expected a ", "expected ").replace(". Got value:", ", got"))
    leaves = list(dict.fromkeys(leaves)) or [message.splitlines()[0]]
    where = _full_path(keys, tree, leaves[-1])
    if value is not None and len(value) < 60 and not any("got" in leaf.lower() for leaf in leaves):
        leaves[-1] += f", got {value}"
    where = ".".join(_cut(key) for key in where.split("."))
    leaves = [leaf if len(leaf) <= 1000 else f"{leaf[:1000]}..." for leaf in leaves]
    return f"{where}: {' or '.join(leaves)}" if where else " or ".join(leaves)


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


def _brief(value: Any) -> str:
    return _cut(repr(value))


def _key(key: Any) -> str:
    """A key in a message; in quotes where it would not be seen."""
    text = _cut(str(key))
    return text if text.strip() and text.isprintable() else repr(text)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _long(options: Iterable[str]) -> list[str]:
    return [option.removeprefix("--") for option in options if option.startswith("--")]
