"""Config files put together from several."""

from pathlib import Path

import pytest
import yaml

from lit_adv.compose import ConfigError, compose, dump, expand_arguments, find_config, merge


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_file_says_what_differs_from_its_base(write):
    write(
        "shared/grand.yaml",
        "trainer: {max_epochs: 100, callbacks: [A]}\nmodel: {class_path: M, init_args: {width: 64}}",
    )
    write("set/base.yaml", "base: ../shared/grand.yaml\nmodel: {init_args: {blocks: 23}}")
    path = write("set/small.yaml", "base: base.yaml\nmodel: {init_args: {width: 8}}\ntrainer: {callbacks+: [B]}")
    assert compose(path) == {
        "trainer": {"max_epochs": 100, "callbacks": ["A", "B"]},
        "model": {"class_path": "M", "init_args": {"width": 8, "blocks": 23}},
    }


def test_of_several_bases_the_later_wins_and_the_file_wins_over_all(write):
    write("one.yaml", "a: 1\nb: 1\nc: 1")
    write("two.yaml", "b: 2\nc: 2")
    assert compose(write("x.yaml", "base: [one.yaml, two.yaml]\nc: 3")) == {"a": 1, "b": 2, "c": 3}


def test_a_value_that_names_a_file_is_its_content_and_replaces_the_base(write):
    write("attacks/common.yaml", "pgd: {class_path: PGD}")
    write("attacks/all.yaml", "base: common.yaml\npatch: {class_path: BoundedPatch}")
    write("attacks/few.yaml", "fgsm: {class_path: FGSM}")
    write("set/a.yaml", "data: {init_args: {attacks: ../attacks/all.yaml}}")
    path = write("set/b.yaml", "base: a.yaml\ndata: {init_args: {attacks: ../attacks/few.yaml}}")
    assert set(compose(path.parent / "a.yaml")["data"]["init_args"]["attacks"]) == {"pgd", "patch"}
    assert set(compose(path)["data"]["init_args"]["attacks"]) == {"fgsm"}


def test_another_class_does_not_inherit_the_arguments_of_the_first():
    base = {"class_path": "lit_adv.attacks.PGD", "init_args": {"eps": 0.1, "steps": 3}}
    same = {"class_path": "PGD", "init_args": {"steps": 5}}
    assert merge(base, same)["init_args"] == {"eps": 0.1, "steps": 5}
    assert merge(base, {"class_path": "FGSM"}) == {"class_path": "FGSM"}


def test_numbers_are_read_as_yaml_1_2_has_them_and_survive_the_way_to_the_parser(write):
    content = compose(write("x.yaml", "a: 1e-3\nb: 5E4\nc: 10\nd: 8/255\ne: .5\nf: 2024-01\ng: '1e-3'\nh: ${vars.x}"))
    assert content == {
        "a": 1e-3,
        "b": 5e4,
        "c": 10,
        "d": "8/255",
        "e": 0.5,
        "f": "2024-01",
        "g": "1e-3",
        "h": "${vars.x}",
    }
    assert yaml.safe_load(dump({**content, "deep": [{"x": [1, None, True]}]})) == {
        **content,
        "deep": [{"x": [1, None, True]}],
    }


def test_yaml_anchors_and_merge_keys_work(write):
    assert compose(write("x.yaml", "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"))["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"x\.yaml, line 1, column 9: .*not valid YAML"),
        ("a: 1\nb:\n  c: 2\n  c: 3", r"x\.yaml, line 4, column 3: the key 'c' is given twice"),
        ("- 1", r"x\.yaml: a config must be a mapping"),
        (
            "base: sharred.yaml",
            r"x\.yaml: base: 'sharred\.yaml' is not a file beside it \(did you mean shared\.yaml\?\)",
        ),
        ("base: 3", r"x\.yaml: base: 3 is not a file"),
        ("base: loop.yaml", r"leads back to itself \(.*x\.yaml -> .*loop\.yaml -> .*x\.yaml\)"),
        ("a: {b: x.yaml}", r"leads back to itself"),
    ],
)
def test_a_bad_file_is_named_with_the_place(write, text, message):
    write("shared.yaml", "a: 1")
    write("loop.yaml", "base: x.yaml")
    with pytest.raises(ConfigError, match=message):
        compose(write("x.yaml", text))


def test_a_config_that_is_not_here_is_found_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/trainer/cpu.yaml", "trainer/cpu.yaml", "lit_adv.configs/trainer/cpu.yaml"):
        assert compose(name)["trainer"]["accelerator"] == "cpu"
    with pytest.raises(ConfigError, match=r"configs/cifar10/redlr\.yaml: no such config .*did you mean .*redrl\.yaml"):
        find_config("configs/cifar10/redlr.yaml")


def test_options_keep_their_place_among_the_configs(write):
    one, two = write("one.yaml", "a: 1"), write("two.yaml", "a: 2")
    expanded, files = expand_arguments(["-c", str(one), "--x=3", f"--config={two}", "--config", "{a: 4}", "--y"])
    assert expanded == ["--config", "{a: 1}\n", "--x=3", "--config", "{a: 2}\n", "--config", "{a: 4}", "--y"]
    assert files == [one, two]
