"""Frames that are labelled for several anatomies, or completely, as training data."""

import shutil
from math import isnan

import cv2
import numpy as np
import pytest
import torch
from helpers import write_dataset, write_label_maps, write_png

from pipeline.counts import count_masks
from pipeline.datasets import FrameDataset
from pipeline.dsad import DataError, DataSet
from pipeline.evaluation import every_frame
from pipeline.evaluation.per_frame import evaluate, predicted_masks
from pipeline.evaluation.runtime_dice import runtime_dice
from pipeline.labels import NO_ANATOMY, NOT_LABELLED, UNKNOWN, load_labels, targets
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.preparation.prepare import prepare
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import labels_digest, list_frames, load_label, load_map
from pipeline.settings import Splits
from stages.shared.training_run import class_weights

ANATOMIES = ["liver", "colon"]
LEGEND = ["spleen", "colon", "liver"]
SIZE = (48, 64)
SURGERIES = ("01", "02", "03", "10")


@pytest.fixture
def maps(tmp_path):
    return write_label_maps(tmp_path / "maps", LEGEND, SURGERIES)


def prepared(root, anatomies=ANATOMIES):
    out = root.parent / "out"
    settings = PrepareSettings(root, anatomies, Splits(val=(2,), test=(3,)), SIZE)
    summary = prepare(settings, out / "frames", out / "labels", workers=2)
    return summary, lambda split, of=anatomies: list_frames(
        out / "frames", out / "labels", split, of
    )


def test_a_data_set_of_label_maps_labels_each_frame_for_all_anatomies(maps):
    summary, frames = prepared(maps)
    assert summary.counts == {
        "train": {"liver": 4, "colon": 4},
        "val": {"liver": 2, "colon": 2},
        "test": {"liver": 2, "colon": 2},
    }
    assert summary.pictures == {"train": 4, "val": 2, "test": 2}
    assert summary.warnings == []
    for frame in frames("test"):
        path = maps / frame.surgery / f"label{frame.id[-2:]}.png"
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        value = LEGEND.index(frame.anatomy) + 1
        assert (load_label(frame.label) == (values == value)).all()
        assert frame.legend == tuple(LEGEND)
        assert frame.shows == {
            name: (values == value).any() for value, name in enumerate(LEGEND, start=1)
        }


def test_in_training_a_picture_comes_once_with_all_that_is_known(maps):
    _, frames = prepared(maps)
    train = frames("train")
    assert [f.id for f in train] == [
        f"liver/{surgery}/image{number:02d}" for surgery in ("01", "10") for number in range(2)
    ]
    assert {f.anatomies for f in train} == {("liver", "colon")}
    assert [f.id for f in frames("train", ["colon"])] == [f.copies[0].id for f in train]
    assert len(frames("test")) == 4  # of which each is measured by its anatomy
    for frame in train:
        labels = load_labels(frame, ["colon", "spleen", "stomach", "liver"], SIZE)
        assert labels.labelled.tolist() == labels.background.tolist() == [True, True, False, True]
        path = maps / frame.surgery / f"label{frame.id[-2:]}.png"
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        expected = np.array([NO_ANATOMY, 1, 0, 3])[values]
        assert (labels.organ == expected).all()
    item = FrameDataset(train, ANATOMIES)[0, 1]
    assert item["labelled"].tolist() == [True, True]


def test_the_same_picture_in_two_sub_data_sets_is_one_frame_with_two_labels(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    for surgery in ("01", "02"):
        shutil.copy(root / "liver" / surgery / "image01.png", root / "colon" / surgery)
    _, frames = prepared(root)
    train = frames("train")
    assert [f.anatomies for f in train if f.copies] == [("liver", "colon")]
    assert len(train) == 5
    assert len(frames("val")) == 6
    both = next(f for f in train if f.copies)
    assert both.copies[0].id == "colon/01/image01"
    before = labels_digest(train)
    write_png(root / "colon/01/mask01.png", np.zeros(SIZE, np.uint8))
    assert labels_digest(prepared(root)[1]("train")) != before


def test_masks_of_one_picture_that_overlap_are_told(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    shutil.copy(root / "liver/01/image01.png", root / "colon/01")
    rows = np.arange(SIZE[0])[:, None].repeat(SIZE[1], 1)
    write_png(root / "liver/01/mask01.png", (rows < 12) * np.uint8(255))
    write_png(root / "colon/01/mask01.png", (rows >= 36) * np.uint8(255))
    assert prepared(root)[0].warnings == []
    write_png(root / "colon/01/mask01.png", (rows < 24) * np.uint8(255))
    summary, frames = prepared(root)
    (warning,) = summary.warnings
    title, line = warning.splitlines()
    assert title == (
        "1 picture is in masks of several anatomies that overlap; there nothing is known:"
    )
    assert "colon/01/mask01.png" in line and "liver/01/mask01.png" in line
    assert f"overlap in {12 / SIZE[0]:.2%} of the pixels" in line
    both = next(f for f in frames("train") if f.copies)
    known = load_labels(both, ANATOMIES, SIZE).organ != NOT_LABELLED
    assert known[12:].all() and not known[:12].any()


@pytest.mark.parametrize(("surgery", "split"), [("01", "train"), ("03", "test")])
def test_a_weak_label_that_the_mask_of_another_folder_contradicts_is_told(tmp_path, surgery, split):
    root = write_dataset(tmp_path / "dsad")
    shutil.copy(root / f"liver/{surgery}/image01.png", root / f"colon/{surgery}")
    weak = root / f"liver/{surgery}/weak_labels.csv"
    weak.write_text("image,liver,colon\nimage00.png,1,0\nimage01.png,1,0\n")
    summary, frames = prepared(root)
    (warning,) = [w for w in summary.warnings if "overlap" not in w]
    title, line = warning.splitlines()
    assert title == "1 weak label is contradicted by what is drawn, which is believed:"
    assert f"{weak}: says that image01 shows no colon, and " in line
    assert f"colon/{surgery}/mask01.png does" in line
    shown = {f.id: f.shows for f in frames(split) if f.anatomy == "liver"}
    assert shown[f"liver/{surgery}/image00"] == {"liver": True, "colon": False}
    assert shown[f"liver/{surgery}/image01"] == {"liver": True}
    write_png(root / f"colon/{surgery}/mask01.png", np.zeros(SIZE, np.uint8))
    assert not [w for w in prepared(root)[0].warnings if "weak label" in w]


def test_a_picture_that_one_anatomy_has_twice_stays_two_frames(tmp_path):
    root = write_dataset(tmp_path / "dsad")
    shutil.copy(root / "liver/01/image01.png", root / "liver/01/image02.png")
    train = prepared(root)[1]("train")
    assert len(train) == 6
    assert not any(f.copies for f in train)


def test_what_is_wrong_with_a_data_set_of_maps_is_told_together(maps):
    (maps / "01/label00.png").unlink()
    (maps / "02/image00.png").unlink()
    write_png(maps / "10/label01.png", np.full(SIZE, 9, np.uint8))
    with pytest.raises(DataError) as error:
        prepared(maps, ["liver", "colon", "stomach"])
    problems = "\n".join(error.value.problems)
    assert "01/image00.png: its label label00.png is missing" in problems
    assert "02/label00.png: its frame image00.png is missing" in problems
    assert "10/label01.png: holds 9, and" in problems
    assert "anatomies.txt names only 1 to 3" in problems
    assert "data.anatomies: stomach is not named by" in problems
    assert len(error.value.problems) == 4


def test_surgeries_of_maps_are_split_by_their_folders(maps):
    settings = PrepareSettings(maps, ANATOMIES, Splits(val=(2,), test=(77,)), SIZE)
    with pytest.raises(DataError, match="no anatomy has a folder of surgery 77; there: 01, 02"):
        prepare(settings, maps.parent / "out/frames", maps.parent / "out/labels")


# ---- several data sets


@pytest.fixture
def mixture(tmp_path):
    """Masks of liver and colon, and label maps of another clinic with names of its own."""
    root = write_dataset(tmp_path / "dsad")
    names = ("L-hook", "hepar", "grasper")
    other = DataSet(
        write_label_maps(tmp_path / "clinic", names, ("1", "02", "7")),
        "clinic",
        {"hepar": "liver", "L-hook": "instrument", "grasper": "instrument"},
    )
    return root, other


def prepared_mixture(root, others, anatomies=("liver", "colon", "instrument"), **splits):
    out = root.parent / "out"
    splits = {"val": ["02", "clinic.2"], "test": ["03", "clinic.07"]} | splits
    settings = PrepareSettings(root, list(anatomies), Splits(**splits), SIZE, others=others)
    summary = prepare(settings, out / "frames", out / "labels", workers=2)
    return summary, lambda split, of=anatomies: list_frames(
        out / "frames", out / "labels", split, of
    )


def test_several_data_sets_are_one_under_our_names(mixture):
    root, other = mixture
    summary, frames = prepared_mixture(root, [other])
    assert summary.counts == {
        split: {"liver": 5, "colon": 3, "instrument": 2} for split in ("train", "val", "test")
    }
    assert summary.warnings == []
    train = frames("train")
    assert {f.surgery for f in train} == {"01", "clinic.1"}
    mapped = [f for f in train if f.map]
    assert [f.anatomies for f in mapped] == [("liver", "instrument")] * 2
    assert {f.legend for f in mapped} == {("instrument", "liver")}
    labels = load_labels(mapped[0], ["liver", "colon", "instrument"], SIZE)
    assert labels.labelled.tolist() == [True, False, True]
    values = cv2.imread(str(other.root / "1/label00.png"), cv2.IMREAD_GRAYSCALE)
    # 1 and 3 are instruments, 2 is the liver; of the colon that data set says nothing.
    assert (labels.organ == np.array([NO_ANATOMY, 2, 0, 2])[values]).all()
    alone = next(f for f in train if f.surgery == "01" and f.anatomy == "colon")
    assert load_labels(alone, ["liver", "colon"], SIZE).labelled.tolist() == [False, True]


def test_surgeries_of_several_data_sets_never_meet(mixture):
    root, other = mixture
    (root / "liver" / "01").rename(root / "liver" / "1")
    (root / "colon" / "01").rename(root / "colon" / "1")
    _, frames = prepared_mixture(root, [other])
    assert {f.surgery for f in frames("train")} == {"1", "clinic.1"}
    with pytest.raises(DataError, match=r"no anatomy has a folder of surgery clinic.9; there: "):
        prepared_mixture(root, [other], test=["clinic.9"])


def test_masks_of_another_data_set_are_renamed_with_their_weak_labels_and_maps(tmp_path):
    root = write_dataset(tmp_path / "dsad", anatomies=("liver",))
    other = write_dataset(tmp_path / "clinic", anatomies=("Leber", "Darm"), seed=5)
    for number in range(3):
        (other / "Leber/01/weak_labels.csv").write_text(
            "file,Leber,Darm\n" + "".join(f"image{n:02d}.png,1,0\n" for n in range(3))
        )
        mask = cv2.imread(str(other / f"Darm/03/mask{number:02d}.png"), cv2.IMREAD_GRAYSCALE)
        place = other / f"multilabel/Darm/03/label{number:02d}.png"
        write_png(place, (mask > 0).astype(np.uint8) * 2)
    (other / "multilabel/anatomies.txt").write_text("Leber\nDarm\n")
    others = [DataSet(other, "clinic", {"Leber": "liver", "Darm": "colon"})]
    splits = {"val": [2, "clinic.2"], "test": [3, "clinic.3"]}
    summary, frames = prepared_mixture(root, others, ("liver", "colon"), **splits)
    assert summary.warnings == []
    shown = [f.shows for f in frames("train") if f.id.startswith("liver/clinic.01")]
    assert shown == [{"liver": True, "colon": False}] * 3
    mapped = [f for f in frames("test") if f.map]
    assert [f.id for f in mapped] == [f"colon/clinic.03/image{n:02d}" for n in range(3)]
    assert {f.legend for f in mapped} == {("liver", "colon")}


def test_what_is_wrong_with_another_data_set_is_told_by_its_key(mixture, tmp_path):
    root, other = mixture
    (tmp_path / "empty").mkdir()
    others = [
        DataSet(other.root, "clinic", {"hepar": "leber"}),
        DataSet(tmp_path / "nowhere", "gone"),
        DataSet(write_dataset(tmp_path / "third", anatomies=("uterus",)), "third", {"a": "liver"}),
    ]
    with pytest.raises(DataError) as error:
        prepared_mixture(root, others, ("liver", "colon"), val=[2], test=[3])
    problems = "\n".join(error.value.problems)
    assert "data.others.clinic.rename: leber is not one of data.anatomies" in problems
    assert f"data.others.gone.root: {tmp_path}/nowhere is not a folder" in problems
    assert "data.others.third.rename: a is not in" in problems
    assert "data.others.third.root: " in problems
    assert "has none of data.anatomies; there: uterus" in problems


def test_names_that_another_data_set_does_not_have_are_told(mixture):
    root, other = mixture
    wrong = DataSet(other.root, "clinic", {**other.rename, "graspr": "instrument"})
    with pytest.raises(DataError) as error:
        prepared_mixture(root, [wrong])
    (problem,) = error.value.problems
    assert problem == (
        f"data.others.clinic.rename: graspr is not in {other.root}; there: L-hook, hepar, grasper"
    )


def test_label_maps_of_another_data_set_must_say_what_their_values_mean(mixture):
    root, other = mixture
    (other.root / "anatomies.txt").unlink()
    with pytest.raises(DataError, match=r"holds label maps and no anatomies\.txt"):
        prepared_mixture(root, [other], ("liver", "colon"), val=[2], test=[3])


def test_names_above_the_label_maps_are_warned_of(maps):
    """DVC does not see them change."""
    (maps / "anatomies.txt").rename(maps.parent / "anatomies.txt")
    summary, _ = prepared(maps)
    (warning,) = summary.warnings
    assert warning.startswith(f"{maps.parent / 'anatomies.txt'} names the values of the maps")


def test_the_same_folder_twice_is_refused(mixture):
    """Else its test surgeries would train under another name."""
    root, other = mixture
    link = root.parent / "link"
    link.symlink_to(other.root)
    again = DataSet(link, "again", other.rename)
    with pytest.raises(DataError, match=r"again.root: .*link is data.others.clinic.root, too"):
        prepared_mixture(root, [other, again])
    with pytest.raises(DataError, match=r"dsad is data.root, too: name it once"):
        prepared_mixture(root, [other, DataSet(root, "dsad")])


@pytest.fixture
def partial_maps(maps):
    """Maps without a label on the left third of every frame."""
    with (maps / "anatomies.txt").open("a") as file:
        file.write("255 = not labelled\n")
    for path in maps.rglob("label*.png"):
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        values[:, :21] = 255
        write_png(path, values)
    return maps


def test_nothing_is_learnt_from_a_pixel_without_a_label(partial_maps):
    summary, frames = prepared(partial_maps)
    assert summary.warnings == []
    for frame in frames("train"):
        labels = load_labels(frame, ANATOMIES, SIZE)
        values = cv2.imread(str(frame.map), cv2.IMREAD_GRAYSCALE)
        assert (values[:, :21] == 255).all() and (load_label(frame.label)[:, :21] == 255).all()
        known = (torch.from_numpy(each)[None] for each in (labels.organ, labels.background))
        target = targets(*known)[0]
        assert (target[:, :, :21] == UNKNOWN).all() and (target[:, :, 21:] != UNKNOWN).all()
        # What is hidden may show anything.
        assert all(frame.shows.values())


def test_class_weights_count_labelled_pixels(partial_maps):
    _, frames = prepared(partial_maps)
    train = frames("train")
    weights = class_weights(train, ["liver"])[0]
    values = [cv2.imread(str(frame.map), cv2.IMREAD_GRAYSCALE)[:, 21:] for frame in train]
    positive = sum((each == LEGEND.index("liver") + 1).sum() for each in values)
    pixels = sum(each.size for each in values)
    expected = [pixels / (2 * (pixels - positive)), pixels / (2 * positive)]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_no_measure_counts_a_pixel_without_a_label(partial_maps):
    """Whatever is predicted there."""
    _, frames = prepared(partial_maps)
    test = frames("test")
    torch.manual_seed(1)
    network = create_model("mininetv2", 2).eval()
    results = list(evaluate(network, test, ANATOMIES, 2, 2.0, Machine("cpu")))
    masks = predicted_masks(network, test, ANATOMIES, Machine("cpu"))
    for frame, result in zip(test, results, strict=True):
        values = load_map(frame.map)
        known = values != 255
        label = values == LEGEND.index(frame.anatomy) + 1
        assert result.counts == count_masks(masks[frame.id][known], label[known])
        assert result.calibration.pixels.sum() == known.sum()
        assert result.every_decoder.every[ANATOMIES.index(frame.anatomy)] == result.counts
        # Unlabelled pixels cut outlines, and may show what is not drawn.
        assert isnan(result.surface.nsd)
        is_drawn = bool(label.any())
        assert every_frame._shows(result, frame.anatomy) is (is_drawn or None)
    assert any(mask[:, :21].any() for mask in masks.values())


def test_another_runtimes_dice_leaves_such_pixels_out(partial_maps):
    _, frames = prepared(partial_maps)
    right = np.zeros((2, *SIZE), bool)
    right[:, :, 40:] = True
    both = right.copy()
    both[:, :, :21] = True
    dice = [runtime_dice(lambda _, m=m: m, frames("test"), ANATOMIES, SIZE) for m in (right, both)]
    assert dice[0] == dice[1] and dice[0].own > 0


def test_all_of_a_label_map_is_known_if_it_is_the_label(maps):
    """A picture counts for each anatomy, with what is known of all decoders."""
    _, frames = prepared(maps)
    test = frames("test")
    assert all(frame.labelled_by_map for frame in test)
    torch.manual_seed(1)
    network = create_model("mininetv2", 2).eval()
    results = list(evaluate(network, test, ANATOMIES, 2, None, Machine("cpu")))
    figures = every_frame.summarise_all(results, ANATOMIES)
    assert figures["known_dice"] == figures["every_dice"] and figures["known_dice"]["mean"] > 0
