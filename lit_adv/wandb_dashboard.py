"""A Weights & Biases workspace and report whose panels stand in the groups of `lit_adv.dashboard`."""

from __future__ import annotations

from typing import Any

from lit_adv.dashboard import GROUPS, Group

NEEDED = "pip install 'lit_adv[dashboards]'"


def workspace(entity: str, project: str, name: str = "lit_adv") -> Any:
    """A saved view of a project: a section a group, with plots, figures and tables.

    Args:
        entity: The user or team.
        project: The project.
        name: Of the view.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``; its ``save()`` sends it.

    Raises:
        ImportError: The package wandb-workspaces is missing.
        ValueError: A name is empty.
    """
    _check(entity, project)
    workspaces, _ = _packages()
    sections = [workspaces.Section(name=group.name, panels=_panels(group), is_open=True) for group in GROUPS]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)


def report(entity: str, project: str, title: str = "lit_adv") -> Any:
    """The same as a page to share, for all runs of the project: a heading and a grid of panels a group.

    Args:
        entity: The user or team.
        project: The project.
        title: Of the page.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``; its ``save()`` sends it.

    Raises:
        ImportError: The package wandb-workspaces is missing.
        ValueError: A name is empty.
    """
    _check(entity, project)
    _, reports = _packages()
    blocks = [reports.TableOfContents()]
    for group in GROUPS:
        grid = reports.PanelGrid(runsets=[reports.Runset(entity=entity, project=project)], panels=_panels(group))
        blocks += [reports.H2(group.name), grid]
    return reports.Report(entity=entity, project=project, title=title, blocks=blocks)


def _panels(group: Group) -> list[Any]:
    _, reports = _packages()
    lines = [
        reports.LinePlot(title=title, x="epoch", metric_regex=f"^({rule}).*") for title, rule in group.plots.items()
    ]
    pictures = [reports.MediaBrowser(title=name, media_keys=[f"figures/{name}"]) for name in group.figures]
    tables = [reports.WeavePanelSummaryTable(table_name=f"results/{name}") for name in group.tables]
    panels = [*lines, *pictures, *tables]
    for place, panel in enumerate(panels):
        # three beside each other on a page of 24 columns
        panel.layout = reports.Layout(x=8 * (place % 3), y=7 * (place // 3), w=8, h=7)
    return panels


def _check(entity: str, project: str) -> None:
    for field, value in (("entity", entity), ("project", project)):
        if not value or "/" in value:
            raise ValueError(f"dashboard: {field} must be a name without a slash, got {value!r}")


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ImportError(f"dashboard: the package wandb-workspaces is missing ({NEEDED})") from error
    return workspaces, reports
