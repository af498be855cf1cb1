"""report.html: what is in it, that nothing is fetched, and that it works in a browser."""

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from lit_adv.html_report import MOST_ROWS, write_report

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open the page in")


@pytest.fixture
def folder(tmp_path):
    """A run's folder with a bit of everything."""
    run = tmp_path / "redrl"
    (run / "figures").mkdir(parents=True)
    write_csv(
        run / "metrics.csv",
        [
            {"epoch": 0, "train/loss": 2.0, "val/recognition": 0.5, "val/recognition/pgd": 0.4, "test/acc": ""},
            {"epoch": 1, "train/loss": 1.0, "val/recognition": 0.75, "val/recognition/pgd": 0.8, "test/acc": ""},
            {
                "epoch": 2,
                "train/loss": "nan",
                "val/recognition": "",
                "val/recognition/pgd": "",
                "test/acc": 0.987654321,
            },
        ],
    )
    write_csv(
        run / "results.csv",
        [
            {"section": "recognition", "attack": name, "value": value, "count": count}
            for name, value, count in (("pgd", 0.9, 10), ("cw", 0.10, 9), ("deepfool", "", 100))
        ]
        + [{"section": "reconstruction", "attack": "<script>alert(1)</script>", "value": 1e-7, "count": 1}],
    )
    write_csv(run / "robustness.csv", [{"attack": f"a{number}", "accuracy": number} for number in range(MOST_ROWS + 7)])
    (run / "config.yaml").write_text("model: '</pre><script>alert(2)</script>'\n")
    (run / "git.json").write_text('{"commit": null, "torch": "2.14.1", "command": ["lightning", "fit"]}')
    Figure(figsize=(2, 1)).savefig(run / "figures" / "confusion.png")
    Figure(figsize=(2, 1)).savefig(run / "figures" / "something_new.png")
    return run


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Page(HTMLParser):
    """Checks that tags are balanced and notes what a page would load and show."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.sections, self.scripts = [], [], {}, 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.loaded += [value for name, value in attributes.items() if name in ("src", "href", "srcset", "data")]
        self.scripts += tag == "script"
        if tag == "section":
            self.sections[attributes["id"]] = ""
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            self.sections[next(reversed(self.sections))] += f"{data}\n"


def test_everything_in_the_folder_is_in_its_section_and_nothing_is_loaded(folder):
    page = Page(write_report(folder).read_text())
    assert list(page.sections) == ["training", "recognition", "reconstruction", "robustness", "other", "config"]
    assert "train/loss" in page.sections["training"]
    for word in ("pgd", "deepfool", "confusion", "0.75"):
        assert word in page.sections["recognition"]
    assert "1e-07" in page.sections["reconstruction"]
    assert "0.9877" in page.sections["robustness"]
    assert "something new" in page.sections["other"]
    for word in ("2.14.1", "lightning fit", "not known", "config.yaml"):
        assert word in page.sections["config"]
    assert [one for one in page.loaded if not one.startswith(("data:image/png;base64,", "#"))] == []
    assert len([one for one in page.loaded if one.startswith("data:")]) == 4  # two of curves


def test_what_a_run_is_called_cannot_become_part_of_the_page(folder):
    page = Page(write_report(folder).read_text())
    assert page.scripts == 1
    assert "<script>alert(1)</script>" in page.sections["reconstruction"]
    assert "</pre><script>alert(2)</script>" in page.sections["config"]


def test_a_long_table_says_how_much_is_left_out(folder):
    text = write_report(folder).read_text()
    assert f"the first {MOST_ROWS} of {MOST_ROWS + 7} rows; all are in robustness.csv" in text
    assert f"a{MOST_ROWS - 1}<" in text
    assert f"a{MOST_ROWS}<" not in text


def test_a_folder_without_a_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither tables, figures nor a config"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_does_not_take_the_report_away(folder):
    with (folder / "metrics.csv").open("a") as file:
        file.write('3,0.5,"torn')
    (folder / "git.json").write_text("{")
    (folder / "results.csv").write_bytes(b"section,value\nrecognition,\xff\xfe\n,\n")
    page = Page(write_report(folder).read_text())
    assert "recognition" in page.sections
    # the quote that is never closed takes in the rest of a long file; a list is no description of a run
    (folder / "results.csv").write_text('section,value\nrecognition,"torn\n' + "recognition,0.5\n" * 10_000)
    (folder / "git.json").write_text("[]")
    page = Page(write_report(folder).read_text())
    assert "results.csv: field larger than field limit" in page.sections["other"]


def test_many_curves_have_several_panels(tmp_path):
    rows = [{"epoch": epoch} | {f"val/recognition/a{number}": 0.5 for number in range(25)} for epoch in range(2)]
    write_csv(tmp_path / "metrics.csv", rows)
    text = write_report(tmp_path).read_text()
    names = ", ".join(f"val/recognition ({number} of 3)" for number in (1, 2, 3))
    assert f"<figcaption>Recognition: {names}</figcaption>" in text


@needs_browser
def test_tables_are_sorted_and_figures_enlarged_in_a_browser(folder, tmp_path):
    text = write_report(folder).read_text()
    click = """<script>(() => {
    const table = [...document.querySelectorAll("table")].find(t => t.textContent.includes("deepfool"));
    const column = name => [...table.querySelectorAll("th button")].find(b => b.textContent === name);
    const shown = () => [...table.tBodies[0].rows].map(r => r.cells[0].textContent).join(",");
    const seen = [shown()];
    for (const name of ["count", "count", "value", "attack"]) { column(name).click(); seen.push(shown()); }
    document.querySelector(".zoom").click();
    const dialog = document.querySelector("dialog");
    seen.push(dialog.open && dialog.querySelector("img").naturalWidth > 0);
    dialog.click(); seen.push(dialog.open);
    document.title = "seen " + seen.join(" ");
    })()</script></body>"""
    (tmp_path / "clicked.html").write_text(text.replace("</body>", click))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=2000"]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    run = {"capture_output": True, "text": True, "timeout": 120, "env": environment}
    done = subprocess.run([*command, f"file://{tmp_path}/clicked.html"], **run)
    seen = re.search(r"<title>seen (.*)</title>", done.stdout).group(1).split()
    # by number, both ways, empty cells last; then by words
    assert seen == [
        "pgd,cw,deepfool",
        "cw,pgd,deepfool",
        "deepfool,pgd,cw",
        "cw,pgd,deepfool",
        "cw,deepfool,pgd",
        "true",
        "false",
    ]
