"""Puts one configuration together from several YAML files, before the parser sees it.

Two things that the parser cannot do, so that a config file works alone and copies nothing:

* `base: redrl.yaml` at the top of a file (or a list of files): the file says only what differs from its bases. Mappings
  are merged key by key, everything else is replaced; `name+: [...]` appends to the list `name` of the base; another
  `class_path` drops the arguments of the base's class.
* a value that names a YAML file stands for that file's content (`attacks: ../attacks/redrl_32.yaml`), and replaces what
  the base had there. `${...}` in it refers to the whole config, as anywhere else.

An attack, a region or a victim that a later file or option sets to null (`--data.attacks.patch=null`, or of the last
callback `--trainer.callbacks.init_args.attacks.patch=null`) is taken out of the mapping, for which the parser has no
word.

Paths are relative to the file that holds them. A config that is not in the working directory is looked for among the
configs that are installed with the package.
"""

import importlib.resources
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG_OPTIONS = ("-c", "--config")
_KINDS = ("attacks", "regions", "victims")
# `--data.attacks.patch`, with what may follow it
_NAMED_OPTION = re.compile(rf"--data\.(?:init_args\.)?({'|'.join(_KINDS)})\.([^.=]+)(.*)", re.DOTALL)
_CALLBACK_KINDS = ("attacks", "regions", "classifiers", "techniques", "runs")
_CALLBACK_OPTION = re.compile(
    rf"--trainer\.callbacks\.(?:init_args\.)?({'|'.join(_CALLBACK_KINDS)})\.([^.=]+)(.*)", re.DOTALL
)
# far more than any config has; a text of a few lines whose aliases name each other can say billions
_MOST_VALUES = 200_000


class ConfigError(Exception):
    """What the user wrote cannot be used; the message says what and where, and what would be valid."""


def compose(path: str | Path) -> dict[str, Any]:
    """The content of a config file with its bases merged and the files it names put in place.

    Args:
        path: The file, or its name among the packaged configs.

    Raises:
        ConfigError: A file is missing or not a mapping, has a YAML mistake or a repeated key, or is its own base.
    """
    content = _load(find_config(path), ())
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config must be a mapping such as 'trainer: ...', got {type(content).__name__}")
    return dict(content)


def expand_arguments(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The command line with each `--config FILE` replaced by the composed text, and the files in their order.

    Text is handed on in place of a file, as composing changes the content but not where options stand: what comes later
    wins. A `--config` value that is not a file name (YAML text) is left alone.

    Raises:
        ConfigError: A file cannot be used (see `compose`), or an option sets to null what there is not.
    """
    expanded, files, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if option not in CONFIG_OPTIONS or (not equals and not rest):
            expanded.append(argument)
            continue
        value = value if equals else rest.pop(0)
        if not value.lstrip().startswith("{") and "\n" not in value:
            files.append(find_config(value))
            value = dump(compose(value))
        expanded += ["--config", value]
    for argument in expanded:
        _check_nesting(argument)
    return _without_nulls(expanded), files


def find_config(path: str | Path) -> Path:
    """The file itself, or the packaged config of that name (`configs/cifar10/redrl.yaml` or `cifar10/redrl.yaml`).

    Raises:
        ConfigError: There is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    packaged = _packaged()
    parts = path.parts[1:] if path.parts[:1] in (("configs",), ("lit_adv.configs",)) else path.parts
    if not path.is_absolute() and packaged.joinpath(*parts).is_file():
        return packaged.joinpath(*parts)
    known = [str(p.relative_to(packaged)) for p in sorted(packaged.rglob("*.yaml"))]
    raise ConfigError(f"{path}: no such config file, here or among the packaged configs ({_nearest(path, known)})")


def is_packaged(path: Path) -> bool:
    """Whether a config lies in the installed package rather than below the working directory."""
    path = path.resolve()
    return path.is_relative_to(_packaged()) and not path.is_relative_to(Path.cwd())


def display_name(path: Path) -> str:
    """The name by which `--config` finds the file from any working directory."""
    return str(Path("configs") / path.resolve().relative_to(_packaged())) if is_packaged(path) else str(path)


def merge(base: Any, over: Any) -> Any:
    """`over` laid on `base`: mappings key by key, everything else replaced (see the module's text)."""
    if not isinstance(base, dict) or not isinstance(over, dict) or isinstance(over, _Whole) or _other_class(base, over):
        return over
    merged = dict(base)
    for key, value in over.items():
        name = key[:-1] if isinstance(key, str) and key.endswith("+") else None
        if name is not None and isinstance(merged.get(name), list):
            merged[name] = merged[name] + (value if isinstance(value, list) else [value])
        elif name is not None and isinstance(merged.get(key), list):
            merged[key] = merged[key] + (value if isinstance(value, list) else [value])
        else:
            merged.pop(f"{key}+", None)
            merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def dump(content: dict[str, Any]) -> str:
    """YAML text of a composed config."""
    return yaml.safe_dump(_plain(content), sort_keys=False, default_flow_style=True, width=1_000_000)


def load_text(text: str, source: str) -> Any:
    """The content of YAML text; `source` names it in errors.

    Raises:
        ConfigError: The text is not YAML, or repeats a key.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _count(node, {})
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{source}: it is nested too deeply to be a config (not valid YAML)") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {error.problem or error.context} (not valid YAML)") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error} (not valid YAML)") from error
    finally:
        if loader is not None:
            loader.dispose()


def _packaged() -> Path:
    return Path(str(importlib.resources.files("lit_adv.configs"))).resolve()


def _load(path: Path, parents: tuple[Path, ...]) -> Any:
    if path.resolve() in parents:
        chain = " -> ".join(str(p) for p in (*parents[parents.index(path.resolve()) :], path.resolve()))
        raise ConfigError(f"{path}: the file leads back to itself ({chain})")
    parents = (*parents, path.resolve())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    content = load_text(text, str(path))
    bases = content.pop("base", []) if isinstance(content, dict) else []
    content = _put_files_in_place(content, path, parents)
    merged: Any = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not (path.parent / base).is_file():
            siblings = [p.name for p in sorted(path.parent.glob("*.yaml")) if p != path]
            raise ConfigError(f"{path}: base: {base!r} is not a file beside it ({_nearest(str(base), siblings)})")
        merged = merge(merged, _load(path.parent / base, parents))
    return merge(merged, content) if bases else content


def _put_files_in_place(content: Any, path: Path, parents: tuple[Path, ...]) -> Any:
    if isinstance(content, dict):
        return {key: _put_files_in_place(value, path, parents) for key, value in content.items()}
    if isinstance(content, list):
        return [_put_files_in_place(value, path, parents) for value in content]
    if isinstance(content, str) and content.endswith((".yaml", ".yml")) and (path.parent / content).is_file():
        value = _load(path.parent / content, parents)
        return _Whole(value) if isinstance(value, dict) else value
    return content


def _without_nulls(arguments: list[str]) -> list[str]:
    kept: list[Any] = []  # options as text, configs as content
    changed = False
    given = iter(arguments)
    for argument in given:
        if argument == "--config":
            text = next(given, None)
            if text is None:
                raise ConfigError("--config: a file must follow it (--config FILE)")
            content = load_text(text, "--config")
            for callback in _callbacks(content):
                changed |= _drop_nulls(callback)
            for kind, place in _named(content):
                nulls = [name for name, value in place[kind].items() if value is None]
                for name in nulls:
                    del place[kind][name]
                    _take_out(kind, name, kept)
                    changed = True
                if nulls and not place[kind]:
                    # to the parser, an empty mapping takes the place of the one before
                    del place[kind]
            kept.append(content)
            continue
        option = _NAMED_OPTION.fullmatch(argument) or _CALLBACK_OPTION.fullmatch(argument)
        if option and "=" not in argument:
            argument = f"{argument}={next(given, '')}"
            option = _NAMED_OPTION.fullmatch(argument) or _CALLBACK_OPTION.fullmatch(argument)
        if option and option[3] == "=null" and option.re is _CALLBACK_OPTION:
            last, names = _take_from_callback(option[1], option[2], kept)
            if option[2] not in names:
                raise ConfigError(
                    f"trainer.callbacks.{option[1]}.{option[2]}: null takes out what the last callback, {last}, "
                    f"has ({_nearest(option[2], names)})"
                )
            changed = True
        elif option and option[3] == "=null":
            names = _take_out(option[1], option[2], kept)
            if option[2] not in names:
                raise ConfigError(
                    f"data.{option[1]}.{option[2]}: null takes out what there is ({_nearest(option[2], names)})"
                )
            changed = True
        else:
            kept.append(argument)
    if not changed:
        return arguments
    return [part for one in kept for part in ([one] if isinstance(one, str) else ["--config", dump(one)])]


def _named(content: Any) -> list[tuple[str, dict[str, Any]]]:
    """The kinds of named things that a config has, each with the mapping that holds it."""
    data = content.get("data") if isinstance(content, dict) else None
    places = [data, data.get("init_args")] if isinstance(data, dict) else []
    found = [(kind, place) for place in places if isinstance(place, dict) for kind in _KINDS]
    return [(kind, place) for kind, place in found if isinstance(place.get(kind), dict)]


def _take_out(kind: str, name: str, kept: list[Any]) -> list[str]:
    """Takes a name out of configs and options; returns the names of its kind that there were."""
    names = []
    for one in list(kept):
        if isinstance(one, str):
            option = _NAMED_OPTION.fullmatch(one)
            if option and option[1] == kind:
                names.append(option[2])
                if option[2] == name:
                    kept.remove(one)
        else:
            for place in (place for found, place in _named(one) if found == kind):
                names += place[kind]
                place[kind].pop(name, None)
    return list(dict.fromkeys(names))


def _take_from_callback(kind: str, name: str, kept: list[Any]) -> tuple[str, list[str]]:
    """Takes a name out of the last callback, which is the one that options without a number speak of.

    Returns:
        The callback's class, and the names of that kind that it had.
    """
    names: list[str] = []
    for one in reversed(list(kept)):
        if isinstance(one, str):
            option = _CALLBACK_OPTION.fullmatch(one)
            if option and option[1] == kind:
                names.append(option[2])
                if option[2] == name:
                    kept.remove(one)
            made = re.match(r"--trainer\.callbacks(?:\.class_path)?\+?=(.*)", one, re.DOTALL)
            if made:
                return made[1], names
            continue
        found = _callbacks(one)
        if found:
            last = found[-1]
            for place in (last, last.get("init_args")):
                if isinstance(place, dict) and isinstance(place.get(kind), dict):
                    names += place[kind]
                    place[kind].pop(name, None)
            return str(last.get("class_path")).rpartition(".")[2], names
    return "of which there is none", names


def _check_nesting(argument: str) -> None:
    """Refuses an option whose value no parser could take apart; what else is wrong with it the parser says."""
    option, _, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if any("\ud800" <= letter <= "\udfff" for letter in argument):
        # how Python hands on bytes of the command line that are no text
        raise ConfigError(f"{ascii(option) if option else 'option'}: must be text in UTF-8, got {ascii(argument)[:80]}")
    if ("*" in value and "&" in value) or value.count("[") + value.count("{") > 100:
        try:
            node = yaml.compose(value, Loader=_Loader)
            if node is not None:
                _count(node, {})
        except RecursionError:
            raise ConfigError(f"{option or 'option'}: it is nested too deeply, got {value[:60]!r}...") from None
        except yaml.constructor.ConstructorError as error:
            raise ConfigError(f"{option or 'option'}: {error.problem}, got {value[:60]!r} (write it out)") from error
        except yaml.YAMLError:
            return


def _drop_nulls(callback: dict[str, Any]) -> bool:
    """Leaves out what a callback's own mappings set to null: a list is not merged, so that nothing lies below it."""
    dropped = False
    for place in (callback, callback.get("init_args")):
        for kind in _CALLBACK_KINDS if isinstance(place, dict) else ():
            named = place.get(kind) if isinstance(place, dict) else None
            if isinstance(named, dict) and None in named.values():
                for name in [name for name, value in named.items() if value is None]:
                    del named[name]
                dropped = True
    return dropped


def _callbacks(content: Any) -> list[dict[str, Any]]:
    trainer = content.get("trainer") if isinstance(content, dict) else None
    found = trainer.get("callbacks", trainer.get("callbacks+")) if isinstance(trainer, dict) else None
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _other_class(base: dict[str, Any], over: dict[str, Any]) -> bool:
    names = [str(part["class_path"]).rpartition(".")[2] for part in (base, over) if "class_path" in part]
    return len(names) == 2 and names[0] != names[1]


def _nearest(name: str | Path, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(known)}" if 0 < len(known) <= 12 else "check the path"


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list) else content


class _Whole(dict[str, Any]):
    """The content of a file that stood as a value: replaces the base's value as a whole."""


def _count(node: yaml.Node, counts: dict[yaml.Node, int | None]) -> int:
    """How many values a node stands for, each alias counted anew.

    Raises:
        ConstructorError: A value is inside itself, or there are too many.
    """
    if node in counts:
        known = counts[node]
        if known is None:
            raise yaml.constructor.ConstructorError(None, None, "an alias names what it is in", node.start_mark)
        return known
    counts[node] = None
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for one in node.value:
            total += sum(_count(each, counts) for each in (one if isinstance(one, tuple) else (one,)))
    if total > _MOST_VALUES:
        raise yaml.constructor.ConstructorError(
            None, None, f"aliases stand for more than {_MOST_VALUES:,} values", node.start_mark
        )
    counts[node] = total
    return total


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (`1e-3` is a number) and no repeated keys."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; one that its tag does not fit, such as `!!int x`, is a mistake at that place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, OverflowError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.constructor.ConstructorError(
                None, None, f"the value is not what {tag} can be", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are all different."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "it should be a mapping", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
