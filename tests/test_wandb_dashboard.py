"""The Weights & Biases layout: made without a network."""

import json
import os
import re
import subprocess
import sys

import pytest

from lit_adv import cli, wandb_dashboard
from lit_adv.dashboard import GROUPS, group_of_number

# of the package
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")


def test_the_workspace_has_a_section_a_group_with_all_its_panels():
    pytest.importorskip("wandb_workspaces")
    made = wandb_dashboard.workspace("someone", "lit_adv", "overview")
    spec = json.loads(made._to_model().model_dump_json(by_alias=True))["spec"]
    sections = {one["name"]: one["panels"] for one in spec["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == [group.name for group in GROUPS]
    for group in GROUPS:
        panels = json.dumps(sections[group.name])
        assert len(sections[group.name]) == len(group.plots) + len(group.figures) + len(group.tables)
        assert all(f"figures/{name}" in panels for name in group.figures)
        assert all(f"results/{name}" in panels for name in group.tables)
        rules = re.findall(r'"metricRegex": "(.*?)"', panels)
        assert len(rules) == len(group.plots)
        places = {(one["layout"]["x"], one["layout"]["y"]) for one in sections[group.name]}
        assert len(places) == len(sections[group.name])


def test_its_rules_are_those_of_the_report():
    pytest.importorskip("wandb_workspaces")
    names = ("train/loss", "val/recognition/pgd", "test/accuracy_after/a/pgd", "transfer/Center", "robust/worst_case")
    for group in GROUPS:
        rules = [panel.metric_regex for panel in wandb_dashboard._panels(group) if hasattr(panel, "metric_regex")]
        for name in names:
            assert any(re.match(rule, name) for rule in rules) == (group_of_number(name) == group.name)


def test_the_report_has_a_heading_and_a_grid_a_group():
    pytest.importorskip("wandb_workspaces")
    blocks = wandb_dashboard.report("someone", "lit_adv").blocks[1:]
    assert [block.text for block in blocks[::2]] == [group.name for group in GROUPS]
    assert all(grid.panels and grid.runsets[0].project == "lit_adv" for grid in blocks[1::2])


def test_a_dry_run_prints_the_workspace(capsys, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(sys, "argv", ["lightning", "dashboard", "--entity=me", "--project=p", "--dry_run"])
    cli.main()
    assert json.loads(capsys.readouterr().out)["project"] == "p"


def test_without_an_account_it_says_so(tmp_path):
    pytest.importorskip("wandb_workspaces")
    # another process, as the client library keeps what it was told first
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**kept, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "lit_adv", "dashboard", "--entity=me", "--project=p"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "error: dashboard: Weights & Biases took no workspace" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--entity=", "--project=p"], "entity must be a name without a slash, got ''"),
        (["--entity=me", "--project=a/b"], "project must be a name without a slash, got 'a/b'"),
    ],
)
def test_a_bad_name_is_refused(options, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning", "dashboard", *options])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert message in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    monkeypatch.setattr(sys, "argv", ["lightning", "dashboard", "--entity=me", "--project=p"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "pip install 'lit_adv[dashboards]'" in capsys.readouterr().err
