"""The report in a real browser: no errors, nothing from outside, tables sort, pictures show,
nothing overflows.
"""

import json
import re
import shutil
import subprocess

import pytest
from helpers import ROOT, mtkd

from stages.reporting.report_charts import dice_of_frames

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--allow-file-access-from-files",
    "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip
PROBE = """<!doctype html><meta charset="utf-8">
<iframe id="page" style="width:{width}px;height:900px" src="{url}"></iframe>
<pre id="answer"></pre><script>
const errors = [];
document.getElementById("page").addEventListener("load", () => {{
  const frame = document.getElementById("page");
  const page = frame.contentDocument, view = frame.contentWindow;
  view.addEventListener("error", event => errors.push(event.message));
  const cells = () => [...page.querySelectorAll("#dice tbody tr td:nth-child(3)")];
  const column = () => cells().map(cell => parseFloat(cell.textContent));
  const before = column();
  page.querySelector("#dice th:nth-child(3)").click();
  const up = column();
  page.querySelector("#dice th:nth-child(3)").click();
  document.getElementById("answer").textContent = JSON.stringify({{
    errors, before, up, down: column(),
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    images: [...page.images].map(image => image.naturalWidth),
    charts: [...page.querySelectorAll("svg")].map(
      chart => chart.parentElement.getBoundingClientRect().width),
    letters: [...page.querySelectorAll("svg text")].map(
      text => text.getBoundingClientRect().height),
    requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
  }});
}});
</script>"""


@pytest.fixture(scope="module")
def page(finished):
    return finished[0] / "report" / "index.html"


def test_the_page_needs_nothing_from_outside(page):
    text = page.read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "url(http" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_page_tells_what_it_is_of(page):
    text = page.read_text()
    for part in (
        "fingerprint of the test frames",
        "of their labels",
        "too few surgeries",
        "Too few surgeries: an interval over fewer than 6",
        "with pixels (%)",
        "Not comparable",
        "mininetv2",
        "Settings",
        "torch 2",
    ):
        assert part in text, part


def test_the_papers_figures_are_beside_ours_only_on_its_data(run):
    import yaml

    from stages.report import _is_papers_data
    from stages.shared.project import load_project

    def comparable(surgeries=8, **changes):
        (run / "params.yaml").write_text(yaml.safe_dump(paper | {"data": paper["data"] | changes}))
        return _is_papers_data(load_project(), surgeries)

    assert not _is_papers_data(load_project(), 8)
    paper = yaml.safe_load((ROOT / "stages/presets/paper.yaml").read_text())
    assert comparable()
    assert not comparable(surgeries=4)  # of those that were asked for
    assert not comparable(splits=paper["data"]["splits"] | {"test": [2, 7]})
    assert not comparable(anatomies=[*paper["data"]["anatomies"], "uterus"])
    # The phantom has the names and may be given the numbers.
    assert not comparable(root=str(run / "data/phantom"))


def test_times_of_another_machine_are_said_to_be_its_own(run):
    mtkd("report")
    assert "times are of the same machine" in (run / "report/index.html").read_text()
    path = run / "results/benchmark.json"
    benchmark = json.loads(path.read_text())
    benchmark["machine"] |= {"processor": "Another Processor", "threads": 77}
    path.write_text(json.dumps(benchmark))
    table = mtkd("report")
    text = (run / "report/index.html").read_text()
    assert "Times are of another machine:</strong> Another Processor, cpu, 77 threads" in text
    assert "Another Processor" in re.sub(r"\s+", " ", table)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(page, tmp_path, width):
    (tmp_path / "probe.html").write_text(PROBE.format(width=width, url=page.as_uri()))
    done = subprocess.run(
        [
            CHROMIUM,
            *OPTIONS,
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert found["errors"] == []
    assert "CONSOLE" not in done.stderr
    assert all(name.startswith("data:") for name in found["requests"])
    assert found["up"] == sorted(found["before"])
    assert found["down"] == sorted(found["before"], reverse=True)
    assert found["overflow"] <= 0
    assert len(found["images"]) == 6
    assert min(found["images"]) > 0
    assert len(found["charts"]) == 3
    assert max(found["charts"]) <= width
    assert min(found["letters"]) >= 8  # pixels


def test_annotators_stand_beside_the_networks(run):
    path = run / "results/evaluation.json"
    found = json.loads(path.read_text())
    found["annotators"]["liver"] = {
        "anno_1": {"dice": 91.25, "frames": 20},
        "anno_3": {"dice": 88.0, "frames": 18},
    }
    found["annotators"]["colon"] = {"anno_2": {"dice": 70.0, "frames": 1}}
    path.write_text(json.dumps(found))
    mtkd("report")
    dice = (run / "report/index.html").read_text().split('id="dice"')[1].split("</table>")[0]
    assert "single annotators: anno_1 / anno_2 / anno_3 (frames)" in dice
    assert '- / 70.0 <span class="ci">(1)</span> / -' in dice
    assert '91.2 <span class="ci">(20)</span> / - / 88.0 <span class="ci">(18)</span>' in dice


def test_a_chart_names_every_network_that_it_shows(recwarn):
    assert "distilled" in dice_of_frames({("mtkd", "colon"): [50.0]}, ["liver", "colon"])
    assert "distilled" not in dice_of_frames({}, ["liver"])
    assert not recwarn


def test_the_commit_is_a_sentence_of_its_own(run, monkeypatch):
    monkeypatch.setattr(
        "stages.report._commit", lambda root: "0123abcd with changes that are not committed"
    )
    mtkd("report")
    text = re.sub(
        r"<[^>]*>",
        "",
        (run / "report/index.html").read_text().split("<h2>Cost")[0].split("<body>")[1],
    )
    assert "committed. " in text
    assert re.findall(r"[a-z)][.;:,](?=[A-Z])", text) == []


@pytest.mark.parametrize(
    ("file", "made_by"),
    [
        ("metrics/evaluate.json", "evaluate"),
        ("results/evaluation.json", "evaluate"),
        ("metrics/benchmark.json", "benchmark"),
        ("results/benchmark.json", "benchmark"),
        ("results/per_frame.csv", "evaluate"),
        ("results/qualitative/liver-best.png", "evaluate"),
    ],
)
def test_what_the_report_lacks_is_one_line(run, file, made_by):
    path = run / file
    whole = path.read_text(errors="replace")
    contents = [None] if path.suffix == ".png" else ["{}", whole[: len(whole) // 2], None]
    for content in contents:
        path.unlink() if content is None else path.write_text(content)
        (line,) = mtkd("report", code=1).splitlines()
        assert line.startswith(f"error: {file}")
        assert f"`dvc repro -s -f {made_by}`" in line or f"`dvc repro {made_by}`" in line


def test_a_report_without_curves_is_refused(run):
    shutil.rmtree(run / "results/curves/students/mtkd")
    assert "lacks the students' curves" in mtkd("report", code=1)
