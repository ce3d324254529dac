"""The documentation says what is so: its Python runs, and its commands, settings, files and links
exist.
"""

import re
import shlex
import subprocess

import cv2
import pytest
import yaml
from doc_commands import is_verb, require_command, require_option, require_variable
from doc_pages import Page, anchors, blocks, code_spans, commands, links, read_page, read_pages
from doc_settings import require_accepted, require_all_accepted, require_known
from helpers import ROOT, mtkd, write_png

import cache
from stages.shared.params import load_params
from stages.shared.project import load_project

PAGES = read_pages()
RECORDED_PARAMS = sorted((ROOT / "docs").rglob("*.params.yaml"))

PROGRAM = re.compile(r"(mtkd|dvc|make|pip|python|torchrun) .+")
OVERRIDES = re.compile(r"-S .+")
OPTION = re.compile(r"(--\w[\w-]*)( .*)?")
ENVIRONMENT = re.compile(r"MTKD_[A-Z_]+")
SETTING = re.compile(
    r"((?:data|teacher|cache|distill|student|evaluate|benchmark)\.(?:[\w.]+|\*))(?:: (.+))?"
)
SOURCE = re.compile(r"(?:cache|pipeline|stages|tests|docs)/[\w./*-]*|[\w.-]+\.py")
OUTPUT = re.compile(r"(?:metrics|results|report|stores|checkpoints)/[\w./*<>-]*")
PLACEHOLDER = re.compile(r"[A-Z]|.*<.+>.*")


def on_all_pages(pieces, pattern=None):
    """One test for each piece of a page; with a pattern, of those that it matches."""
    found = []
    for page in PAGES:
        for piece in pieces(page):
            if pattern is None or pattern.fullmatch(piece.text):
                found.append(pytest.param(piece, id=str(piece)))
    assert found, "there is nothing of this kind to check"
    return pytest.mark.parametrize("piece", found)


def blocks_of(kind):
    return lambda page: blocks(page, kind)


def run_python(page):
    """Run the page's blocks of Python in their order, in one namespace; an error names the page's
    line.
    """
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(ROOT / page.name), "exec"), namespace)


def require_named_command(text):
    """A command in a sentence: the name of a verb, or a whole command."""
    text = text.replace("<anatomy>", load_params(ROOT / "params.yaml").data.anatomies[0])
    program, *arguments = shlex.split(text)
    if program != "mtkd" or not is_verb(arguments):
        require_command(text)


def require_setting(text):
    """A key of params.yaml, or a key and its value."""
    key, value = SETTING.fullmatch(text).groups()
    if value is None or PLACEHOLDER.fullmatch(value):
        require_known(key)
    else:
        require_accepted(key, yaml.safe_load(value))


def require_source(name):
    """A file or folder of the repository; a module may be named without its folder."""
    places = [ROOT, *(ROOT / folder for folder in ("cache", "docs", "pipeline", "stages"))]
    patterns = [name] if "/" in name else [name, f"**/{name}"]
    assert any(any(place.glob(pattern)) for place in places for pattern in patterns), (
        f"{name}: there is no such file"
    )


def require_link(page_name, target):
    """A file beside the page, and its heading if one is named."""
    name, _, anchor = target.partition("#")
    path = ((ROOT / page_name).parent / name).resolve() if name else ROOT / page_name
    assert path.exists(), f"{target}: there is no such file"
    if anchor:
        assert anchor in anchors(read_page(path)), f"{target}: {path.name} has no such heading"


PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=[page.name for page in PYTHON_PAGES])
def test_python_runs(page, run):
    run_python(page)


def test_the_store_that_the_page_writes_is_imported(run, monkeypatch):
    """All training frames are in it, those without a mask too."""
    add_a_frame_without_a_mask(run)
    run_python(read_page(ROOT / "docs/how-to/any-teacher.md"))
    assert "mine/liver.zarr: whole" in mtkd("cache", "verify", "mine/liver.zarr")
    assert (
        len(cache.open_store("mine/liver.zarr").frames)
        == len(load_project().distillation_frames())
        == 7
    )
    (run / ".dvc").mkdir()
    (run / "dvc.yaml").touch()
    monkeypatch.setattr("stages.import_teacher._commit", lambda project, stage: None)
    assert "imported from mine/liver.zarr" in mtkd("import-teacher", "liver", "mine/liver.zarr")


def add_a_frame_without_a_mask(run):
    frame = next((run / "dsad/liver/01").glob("image*.png"))
    pixels = cv2.imread(str(frame))[::-1]
    write_png(run / "video/04/000001.png", pixels)
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["data"]["unlabelled_root"] = "video"
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    mtkd("prepare")


def test_the_table_of_the_readme_is_what_was_recorded(monkeypatch):
    monkeypatch.chdir(ROOT)
    (table,) = blocks(read_page(ROOT / "README.md"), "text")
    assert table.text.strip() in mtkd("summary")


def test_the_site_is_built_without_a_warning(tmp_path):
    """Every page of its navigation, every link and every heading is there."""
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "how-to" / "live.html").is_file()


@on_all_pages(commands)
def test_commands_of_blocks(piece):
    require_command(piece.text)


@on_all_pages(code_spans, PROGRAM)
def test_commands_in_sentences(piece):
    require_named_command(piece.text)


@on_all_pages(code_spans, OVERRIDES)
def test_overrides(piece):
    require_command(f"dvc exp run {piece.text}")


@on_all_pages(code_spans, OPTION)
def test_options(piece):
    require_option(OPTION.fullmatch(piece.text)[1])


@on_all_pages(code_spans, ENVIRONMENT)
def test_environment_variables(piece):
    require_variable(piece.text)


@on_all_pages(code_spans, SETTING)
def test_settings(piece):
    require_setting(piece.text)


@on_all_pages(blocks_of("yaml"))
def test_settings_of_blocks(piece):
    require_all_accepted(piece.text)


@pytest.mark.parametrize(
    "path", RECORDED_PARAMS, ids=[str(path.relative_to(ROOT)) for path in RECORDED_PARAMS]
)
def test_recorded_settings_are_accepted_today(path):
    load_params(path)


@on_all_pages(code_spans, SOURCE)
def test_files_of_the_repository(piece):
    require_source(piece.text)


@on_all_pages(blocks_of("files"))
def test_files_of_blocks(piece):
    for line in piece.text.splitlines():
        require_source(line.split()[0])


@on_all_pages(code_spans, OUTPUT)
def test_files_that_a_run_writes(piece, finished):
    folder, _ = finished
    assert any(folder.glob(piece.text.replace("<anatomy>", "liver"))), (
        f"{piece.text}: no stage wrote this"
    )


@on_all_pages(links)
def test_links(piece):
    require_link(piece.page, piece.text)


EXAMPLE = """\
# A *page*, twice

```python
value = 1
```

Text with `mtkd summary` and `dvc
repro`, [a link](store.md#more) and `[no](link)`.

    mtkd plan here   # a comment
    mtkd study gain --way pixels \\
        --seeds 2

## A *page*, twice

```
$ dvc repro evaluate
output, in which mtkd is no command
```

- an item

  ```python
  print(value, misspelt)
  ```
"""


def example(text=EXAMPLE):
    return Page("docs/example.md", text)


def places(pieces):
    return [(piece.line, piece.text) for piece in pieces]


def test_everything_on_a_page_is_found_with_its_line():
    assert [(block.line, block.kind) for block in blocks(example())] == [
        (4, "python"), (10, "commands"), (17, "session"), (24, "python"),
    ]  # fmt: skip
    assert places(commands(example())) == [
        (10, "mtkd plan here   # a comment"),
        (11, "mtkd study gain --way pixels --seeds 2"),
        (17, "dvc repro evaluate"),
    ]
    assert places(code_spans(example())) == [
        (7, "mtkd summary"),
        (7, "dvc repro"),
        (8, "[no](link)"),
    ]
    assert places(links(example())) == [(8, "store.md#more")]
    assert anchors(example()) == {"a-page-twice", "a-page-twice-1"}


def test_python_that_fails_names_the_line_of_the_page():
    with pytest.raises(NameError, match="misspelt") as caught:
        run_python(example())
    assert caught.traceback[-1].lineno + 1 == 24


def test_a_block_of_an_unknown_language_is_not_passed_over():
    with pytest.raises(AssertionError, match="nobody checks"):
        blocks(example("```perl\nprint\n```\n"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mtkd trian-student mtkd", "No such command"),
        ("mtkd cache verfy", "No such command"),
        ("mtkd train-student mtkd --accumulat 2", "No such option"),
        ("mtkd train-student", "Missing argument"),
        ("mtkd train-student teacher", "teacher"),
        ("mtkd predict a.mp4 --output b.mp4 --as mask", "mask"),
        ("mtkd benchmark networks --arch mininetv3", "mininetv3"),
        ("mtkd plan --repeats many", "many"),
        ("MTKD_WORKERS=many mtkd prepare", "MTKD_WORKERS"),
        ("mtkd study gain --seeds 3 --way classes_blanced", "classes_blanced: one of"),
        ("mtkd study settings --student mininetv3", "mininetv3: one of"),
        ("mtkd prepare && mtkd sumary", "No such command"),
        ("python -m stages.cli train-studnt mtkd", "No such command"),
        (
            "torchrun --nproc-per-node 8 -m stages.cli train-student mtkd --device",
            "requires an argument",
        ),
        ("python docs/crop_framse.py CROPS 8", "no such file"),
        ("python docs/scripts/crop_frames.py CROPS 8 --miror", "No such option"),
        ("dvc exp shw", "not accepted by DVC"),
        ("dvc exp show --only-chnged", "not accepted by DVC"),
        ("dvc repro evalute", "no such stage"),
        ("OMP_NUM_THREADS=1 dvc repro train_student@mtdk", "no such stage"),
        ("dvc exp run -S student.epochs=2 cache_logit", "no such stage"),
        ("dvc exp run -S student.archs=segformer_b0", "no such key"),
        ("dvc exp run -S student.arch=segformer_b9", "not accepted"),
        ("dvc exp run -S distill.weight=3,heavy", "not accepted"),
        ("dvc metrics show metrics/evalute.json", "no such file"),
        ("MTKD_DEVICS=8 dvc repro", "nothing reads"),
        ("make tests", "no such target"),
        ("make demo LOKCED=1", "no such variable"),
        ("pip install -e '.[gpu]'", "no such extra"),
        ("cp docs/own_vnet.py pipeline/models/", "no such file"),
        ("pytest tests/cache/test_writer.py -k klil", "selects no test"),
        ("mktd summary", "no check"),
    ],
)
def test_a_wrong_command_fails(line, says):
    with pytest.raises(AssertionError, match=says):
        require_command(line)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (require_named_command, "mtkd study gian"),
        (require_named_command, "mtkd import-teacher liver"),
        (require_named_command, "dvc repro --single-item train_teachers@<anatomy>"),
        (require_option, "--recompte"),
        (require_variable, "MTKD_DEVICS"),
        (require_setting, "distill.grids"),
        (require_setting, "cache.views: -1"),
        (require_all_accepted, "data:\n  unlabeled_root: /path"),
        (require_all_accepted, "student:\n  epochs: none"),
        (require_source, "pipeline/losses/distilation.py"),
        (require_source, "mininetv3.py"),
    ],
)
def test_a_wrong_word_fails(check, text):
    with pytest.raises(AssertionError):
        check(text)


@pytest.mark.parametrize("target", ["metrcis.md", "metrics.md#ruls", "#no-such-heading"])
def test_a_wrong_link_fails(target):
    with pytest.raises(AssertionError, match="no such"):
        require_link("docs/reference/metrics.md", target)


def test_right_links_pass():
    require_link("docs/reference/metrics.md", "../results/parity.md")
    require_link("README.md", "docs/reference/metrics.md#rules")
