"""params.yaml: what is accepted, how the rest is refused, and the paper's recipe by numbers."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from pipeline.errors import MtkdError
from pipeline.settings import Params, Phantom, Settings, Splits, Training
from pipeline.surgeries import surgery_id
from pipeline.training import learning_rate
from stages.shared.params import load_params

PRESETS = Path(__file__).parents[2] / "stages" / "presets"


@pytest.fixture
def check(tmp_path, default_params):
    def check(key=None, value=None, *, drop=False):
        params = copy.deepcopy(default_params)
        if key:
            *path, name = key.split(".")
            section = params
            for part in path:
                section = section[part]
            if drop:
                del section[name]
            else:
                section[name] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return load_params(tmp_path / "params.yaml")

    return check


def test_the_default_is_accepted(check):
    assert check().student.arch == "mininetv2"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("teacher.epoch", 3, "teacher.epoch: no such key; known here: arch"),
        ("students", {}, "students: no such key"),
        (
            "data.others",
            {"c": {"root": "/c", "renam": {}}},
            "data.others.c.renam: no such key; known here: root, rename",
        ),
        ("student.arch", "segformer_b9", "'segformer_b0'"),
        ("student.epochs", 0, "student.epochs: "),
        ("student.epochs", "many", "found 'many'"),
        ("student.epochs", 1.5, "student.epochs: "),
        ("student.batch_size", 1, "student.batch_size: "),
        ("student.learning_rate", -1, "student.learning_rate: "),
        ("student.learning_rate", "fast", "student.learning_rate: "),
        ("teacher.precision", "half", "'bf16-mixed'"),
        ("distill.softmax", "channels", "'pixels', 'classes' or 'classes_balanced'"),
        ("distill.temperature", 0, "distill.temperature: "),
        ("distill.temperature", float("inf"), "distill.temperature: "),
        ("distill.temperature", True, "distill.temperature: "),
        ("distill.temperature", "1e-30", "distill.temperature: "),
        ("distill.weight", float("inf"), "distill.weight: "),
        ("distill.weight", -1, "distill.weight: "),
        ("cache.views", -1, "cache.views: "),
        ("data.image_size", [96], "data.image_size.1: is missing"),
        ("data.anatomies", [], "data.anatomies: "),
        ("data.anatomies", ["a", "a"], "listed twice: a"),
        ("data.anatomies", ["liver", "Liver"], "listed twice: liver, Liver"),
        ("data.image_size", [32, 480_000], "data.image_size.1: "),
        ("data.anatomies", ["a/b"], "cannot name an anatomy"),
        ("data.anatomies", ["a$b"], "'a$b' cannot name an anatomy"),
        ("data.anatomies", ["a`b`"], "cannot name an anatomy"),
        ("data.anatomies", ["a\nb"], "'a\\nb' cannot name an anatomy"),
        ("data.anatomies", ["-x"], "cannot name an anatomy"),
        ("data.anatomies", [" a"], "cannot name an anatomy"),
        ("data.anatomies", ["a" * 101], "cannot name an anatomy"),
        ("data.anatomies", ["mean"], "'mean' cannot name an anatomy"),
        ("data.root", ["/a", "/b"], "data.root: is one folder: name each further data set in"),
        ("data.root", "~/DSAD", "~ and $ are not replaced: write the whole path"),
        ("data.unlabelled_root", "$HOME/x", "~ and $ are not replaced: write the whole path"),
        ("data.splits.val", [2], "in val and in test: [2]"),
        ("data.phantom.difficulty", 2, "data.phantom.difficulty: "),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(check, key, value, says):
    with pytest.raises(MtkdError) as error:
        check(key, value)
    assert says in str(error.value)


@pytest.mark.parametrize("key", ["cache.views", "cache.keep_bits", "distill.grid"])
def test_a_missing_key_is_named(check, key):
    with pytest.raises(MtkdError, match=rf"{re.escape(key)}: is missing"):
        check(key, drop=True)


def test_no_key_has_a_default():
    sections = [Params]
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.is_required(), f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                sections.append(field.annotation)
    assert {Training, Splits, Phantom} <= set(sections)


def test_all_problems_are_reported_together(tmp_path, default_params):
    params = copy.deepcopy(default_params)
    params["student"]["arch"], params["teacher"]["epochs"], params["extra"] = "x", -1, 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(MtkdError) as error:
        load_params(tmp_path / "params.yaml")
    assert all(key in str(error.value) for key in ("student.arch", "teacher.epochs", "extra"))


def test_numbers_that_yaml_reads_as_strings_are_numbers(check):
    assert check("student.learning_rate", "5e-4").student.learning_rate == 5e-4


@pytest.fixture
def written(tmp_path):
    """The settings of the default params.yaml with some of its text replaced."""

    def written(*changes):
        text = (PRESETS / "demo.yaml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "params.yaml").write_text(text)
        return load_params(tmp_path / "params.yaml")

    return written


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("[010, 011]", [10, 11]),  # YAML 1.1: 8 and 9
        ("[08, '09', \"10\"]", [8, 9, 10]),
        ("['1e3', \"12_3\", '3.10', '0x1F']", ["1e3", "12_3", "3.10", "0x1F"]),
        ("['true', 'no', 'null', '2024-01-31']", ["true", "no", "null", "2024-01-31"]),
        ("['1:30', ², b7]", ["1:30", "²", "b7"]),
    ],
)
def test_ids_of_surgeries_are_what_is_written(written, text, ids):
    assert (
        written(
            ("val: [3, 9]", f"val: {text}"), ("test: [2, 7, 11, 14]", "test: []")
        ).data.splits.val
        == ids
    )
    assert (
        written(
            ("test: [2, 7, 11, 14]", f"test: {text}"), ("val: [3, 9]", "val: []")
        ).data.splits.test
        == ids
    )


# Of each group DVC takes at least two for the same value, or readers of YAML disagree.
ALIKE = [
    ("3.10", "3.1", "3.100"),
    ("0x1F", "31", "3_1"),
    ("1e3", "1000.0", "1000"),
    ("true", "True"),
    ("null", "~"),
]


@pytest.mark.parametrize("texts", ALIKE)
@pytest.mark.parametrize("quote", ["", "'"])
def test_what_is_another_surgery_here_is_another_value_to_dvc(written, texts, quote):
    here, to_dvc = [], []
    for text in texts:
        line = f"[{quote}{text}{quote}]"
        try:
            here += written(("val: [3, 9]", f"val: {line}")).data.splits.val
        except MtkdError as error:
            assert (
                f"data.splits.val.0: {text} is not text to every reader of YAML: put it in quotes"
                in str(error)
            )
        else:
            to_dvc += parse_yaml(line, "params.yaml")
    assert quote == "" or len(here) == len(texts)
    assert len(set(here)) == len(set(to_dvc))


@pytest.mark.parametrize("split", ["val: [3, 9]", "test: [2, 7, 11, 14]"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("02", "such as [02], found '02'"),
        ("'02'", "such as [02], found '02'"),
        ("3.10", "such as [3.10], found '3.10'"),
        ("02, 05", "such as [02, 05], found '02, 05'"),
        ("", "such as [02], found ''"),
        ("{a: 1}", "such as [02], found {'a': 1}"),
    ],
)
def test_a_split_that_is_not_a_list_says_so(written, split, text, says):
    name = split.split(":")[0]
    with pytest.raises(
        MtkdError, match=rf"data\.splits\.{name}: a list of surgeries is expected, "
    ) as error:
        written((split, f"{name}: {text}"))
    assert says in str(error.value)


def test_one_rule_says_which_surgeries_are_the_same():
    assert [surgery_id(name) for name in ("3", "03", 3, "²", "٣", "x3", "-3")] == [
        3,
        3,
        3,
        "²",
        "٣",
        "x3",
        "-3",
    ]


def test_an_empty_id_is_refused(written):
    with pytest.raises(
        MtkdError, match=r"data\.splits\.val\.1: the name of a surgery's folder is wanted"
    ):
        written(("val: [3, 9]", "val: [3, '']"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "image_size: [64, 80]",
            "image_size: [064, 80]",
            "data.image_size.0: 064 is 52 to YAML 1.1",
        ),
        ("epochs: 16", "epochs: 1_6", "teacher.epochs: 1_6 is 16 to YAML 1.1"),
        ("epochs: 16", "epochs: 1:30", "teacher.epochs: 1:30 is 90 to YAML 1.1"),
        (
            "class_weights: false",
            "class_weights: off",
            "teacher.class_weights: off is False to YAML 1.1",
        ),
        ("- colon", "- 010", "data.anatomies.1: 010 is not text to every reader of YAML"),
        ("- colon", "- 1e3", "data.anatomies.1: 1e3 is not text to every reader of YAML"),
        ("- colon", "- 3.10", "data.anatomies.1: 3.10 is not text"),
        ("- colon", "- yes", "data.anatomies.1: yes is not text"),
        ("root: data/phantom", "root: 2024-01-31", "data.root: 2024-01-31 is not text"),
        ("pretrained: none", "pretrained: no", "teacher.pretrained: no is not text"),
        ("  epochs: 16", "  epochs: 16\n  epochs: 17", "teacher.epochs: is there twice"),
    ],
)
def test_what_yaml_may_read_in_two_ways_is_refused(written, old, new, says):
    with pytest.raises(MtkdError) as error:
        written((old, new))
    assert says in str(error.value)


def test_names_of_anatomies_may_hold_what_folders_and_shells_bear(check):
    names = ["left ureter", "Gefäß", "3rd", "a%b+c=d,e(f)", "!", "x" * 100]
    assert check("data.anatomies", names).data.anatomies == names


def test_names_in_quotes_are_text(written):
    assert written(("- colon", "- '010'")).data.anatomies[1] == "010"
    assert written(("- colon", "- 3rd_ventricle")).data.anatomies[1] == "3rd_ventricle"


def test_plain_numbers_of_every_kind_are_read(written):
    for text, value in (("0", 0), ("+7", 7), ("7.", 7), ("7e0", 7), (".5", 0.5), ("1.5e-1", 0.15)):
        assert written(("weight: 30.0", f"weight: {text}")).distill.weight == value


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    text = (PRESETS / "demo.yaml").read_bytes()
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert load_params(tmp_path / "params.yaml") == load_params(PRESETS / "demo.yaml")


def test_no_file_or_no_yaml_is_one_line(tmp_path):
    with pytest.raises(MtkdError, match="mtkd init"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(MtkdError, match="not YAML"):
        load_params(tmp_path / "params.yaml")


def test_the_demo_preset_is_the_default(default_params):
    assert yaml.safe_load((PRESETS / "demo.yaml").read_text()) == default_params


def test_the_paper_preset_is_the_paper():
    """Maack et al. (2024), sections 3.1, 3.2 and 4; splits of Kolbinger et al. (2023)."""
    paper = load_params(PRESETS / "paper.yaml")
    assert paper.data.anatomies == [
        "abdominal_wall",
        "colon",
        "inferior_mesenteric_artery",
        "intestinal_veins",
        "liver",
        "pancreas",
        "small_intestine",
        "spleen",
        "stomach",
        "ureter",
        "vesicular_glands",
    ]
    assert paper.data.image_size == (512, 640)
    assert paper.data.splits.val == [3, 21, 26]
    assert paper.data.splits.test == [2, 7, 11, 13, 14, 18, 20, 32]
    stage1, stage2 = paper.teacher, paper.student
    assert (stage1.learning_rate, stage1.final_learning_rate, stage1.epochs) == (5e-4, 1.5e-6, 100)
    assert (stage2.learning_rate, stage2.final_learning_rate, stage2.epochs) == (1e-3, 2.5e-5, 60)
    assert stage1.batch_size == stage2.batch_size == 8
    assert stage1.arch == "segformer_b3"
    assert "cityscapes" in stage1.pretrained
    assert (stage2.arch, stage2.pretrained) == ("mininetv2", "none")
    assert not stage1.class_weights
    assert not stage2.class_weights
    assert (paper.distill.temperature, paper.distill.weight, paper.distill.softmax) == (
        4.0,
        3.0,
        "pixels",
    )
    assert paper.benchmark.image_size == (720, 1280)


def test_the_learning_rate_is_exponential_from_first_to_final():
    student = load_params(PRESETS / "paper.yaml").student
    assert learning_rate(student, 0) == 1e-3
    assert learning_rate(student, 60) == pytest.approx(2.5e-5)
    assert learning_rate(student, 31) / learning_rate(student, 30) == pytest.approx(
        0.025 ** (1 / 60)
    )
