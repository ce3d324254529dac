"""Data sets with their problems: what is described is what the files hold."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers import REAL_DATA, write_dataset, write_label_maps, write_png

from pipeline.dsad import DataError, DataSet
from pipeline.labels import UNKNOWN, load_labels, targets
from pipeline.preparation.prepare import prepare
from pipeline.preparation.settings import PrepareSettings
from pipeline.prepared import Frame, list_frames
from pipeline.settings import Splits
from pipeline.survey import known_pixels, read_drawn, survey

ANATOMIES = ("liver", "colon")
LEGEND = ("spleen", "colon", "liver")
SPLITS = Splits(val=[2], test=[3])


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "dsad")


@pytest.fixture
def read(root, tmp_path):
    """A function that surveys the data set, or another one."""
    folders = iter(tmp_path / f"scratch{i}" for i in range(9))

    def surveyed(**changes):
        values = {"root": root, "anatomies": ANATOMIES, "splits": SPLITS, "image_size": (32, 48)}
        folder = next(folders)
        folder.mkdir()
        return survey(PrepareSettings(**values | changes), folder, workers=2)

    return surveyed


@pytest.fixture
def maps(tmp_path):
    return write_label_maps(tmp_path / "maps", LEGEND, ("01", "02", "03"))


def test_every_frame_of_a_sound_data_set(root, read):
    of = read()
    assert not of.problems
    assert len(of.pictures) == 18
    picture = of.pictures[4]
    assert (picture.id, picture.split) == ("liver/02/image01", "val")
    frame = cv2.imread(str(root / "liver/02/image01.png"))
    mask = cv2.imread(str(root / "liver/02/mask01.png"), cv2.IMREAD_GRAYSCALE) > 0
    assert picture.frames[0].size == (48, 64)
    assert picture.areas == {"liver": mask.mean()}
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    assert picture.look.brightness == pytest.approx(grey.mean())
    assert (read_drawn(picture, "liver", of.legends) == mask).all()


def test_what_is_known_is_what_the_labels_say_of_the_prepared_frames(root, read, tmp_path):
    """Of masks, weak labels and label maps, pixel by pixel."""
    (root / "colon/01/weak_labels.csv").write_text("image,liver\nimage00.png,0\nimage01.png,1\n")
    mask = cv2.imread(str(root / "liver/01/mask00.png"), cv2.IMREAD_GRAYSCALE) > 0
    values = mask.astype(np.uint8)
    values[:9][~mask[:9]] = 2
    values[40, :20] = 1  # contradicts the mask
    write_png(root / "multilabel/liver/01/label00.png", values)
    pictures = {picture.id: picture for picture in read().pictures}
    settings = PrepareSettings(root, ANATOMIES, SPLITS, (32, 48))
    prepare(settings, tmp_path / "frames", tmp_path / "labels")
    for split in ("train", "val", "test"):
        for frame in list_frames(tmp_path / "frames", tmp_path / "labels", split, ANATOMIES):
            labels = load_labels(frame, ANATOMIES, (32, 48))
            organ = torch.from_numpy(labels.organ)[None]
            target = targets(organ, torch.from_numpy(labels.background)[None])[0].numpy()
            others = {name: frame.shows[name] for name in frame.shows if name != frame.anatomy}
            assert pictures[frame.id].shows == others
            for name, of in zip(ANATOMIES, target, strict=True):
                known = pictures[frame.id].known[name]
                assert known.anatomy == pytest.approx((of == 1).mean())
                assert known.background == pytest.approx((of == 0).mean())
    assert pictures["colon/01/image00"].shows == {"liver": False}
    assert pictures["colon/01/image00"].known["liver"].background == 1
    assert pictures["liver/01/image00"].known["colon"].background > 0.5


def test_a_pixel_of_contradictory_labels_is_known_to_nobody(tmp_path):
    write_png(tmp_path / "a.map.png", np.array([[0, 1], [2, 255]], np.uint8))
    path = tmp_path / "a.map.png"
    frame = Frame("a", "liver", "01", path, path, map=path, legend=("liver", "colon"))
    known = known_pixels(frame, ANATOMIES, (2, 2))
    assert known["liver"].anatomy == known["colon"].anatomy == 0.25
    assert known["liver"].background == 0.5
    assert UNKNOWN == -1


def test_what_is_wrong_is_listed_and_the_rest_is_described(root, read):
    (root / "liver/01/mask00.png").write_bytes(b"")
    (root / "liver/02/image00.png").unlink()
    content = (root / "colon/01/image00.png").read_bytes()
    (root / "colon/01/image00.png").write_bytes(content[:-40])
    shutil.copy(root / "colon/01/image01.png", root / "colon/03/image01.png")
    write_png(root / "colon/02/mask02.png", np.zeros((9, 9), np.uint8))
    of = read(anatomies=("liver", "colon", "spleen"))
    text = "\n".join(of.problems)
    for part in (
        "mask00.png: is empty",
        "liver/02/mask00.png: its frame image00.png is missing",
        "colon/01/image00.png: is truncated",
        "are the same frame in two splits",
        "frame and mask have different sizes",
        "spleen has no folder",
    ):
        assert part in text
    ids = {picture.id for picture in of.pictures}
    assert len(ids) == 14
    left_out = {"liver/01/image00", "liver/02/image00", "colon/01/image00", "colon/02/image02"}
    assert ids.isdisjoint(left_out)
    assert of.anatomies == ["liver", "colon", "spleen"]


def test_problems_and_warnings_are_those_of_prepare(root, read, tmp_path):
    (root / "liver/01/notes.txt").write_text("")
    write_png(root / "liver/01/mask02.png", np.full((48, 64), 7, np.uint8))
    settings = PrepareSettings(root, ANATOMIES, SPLITS, (32, 48))
    summary = prepare(settings, tmp_path / "frames", tmp_path / "labels")
    assert summary.warnings
    assert read().warnings == summary.warnings
    (root / "liver/01/mask00.png").unlink()
    (root / "colon/02/image00.png").write_bytes(b"no PNG")
    with pytest.raises(DataError) as caught:
        prepare(settings, tmp_path / "frames", tmp_path / "labels")
    assert read().problems == list(caught.value.problems)


def test_without_splits_all_frames_are_together(read):
    of = read(splits=Splits(val=[], test=[]))
    assert {picture.split for picture in of.pictures} == {"all"}
    assert not any("its last epoch" in warning for warning in of.warnings)


def test_frames_without_masks_are_apart(root, read, tmp_path):
    shutil.copytree(root / "liver/01", tmp_path / "film/01", ignore=lambda *_: ["mask00.png"])
    of = read(unlabelled_root=tmp_path / "film")
    unlabelled = [each for each in of.pictures if each.split == "unlabelled"]
    assert unlabelled[0].id == "unlabelled/01/image00"
    assert not unlabelled[0].areas and not unlabelled[0].known
    of = read(unlabelled_root=tmp_path / "nowhere")
    assert "data.unlabelled_root" in of.problems[0]
    assert len(of.pictures) == 18


def test_the_same_picture_with_two_masks_is_one_with_all_that_is_known(root, read):
    for surgery in ("01", "02"):
        shutil.copy(root / f"liver/{surgery}/image01.png", root / f"colon/{surgery}")
    of = read()
    assert len(of.pictures) == 16
    for picture in of.pictures:
        if len(picture.frames) == 1:
            continue
        assert picture.id == f"liver/{picture.surgery}/image01"
        masks = {name: read_drawn(picture, name, of.legends) for name in ANATOMIES}
        assert picture.areas == {name: mask.mean() for name, mask in masks.items()}
        assert not picture.shows
        known = picture.known["liver"].anatomy + picture.known["liver"].background
        contradicted = (masks["liver"] & masks["colon"]).mean()
        assert known == pytest.approx(1 - contradicted, abs=0.02)


def test_a_picture_with_a_label_map_stands_once(maps, read):
    of = read(root=maps)
    assert not of.problems and not of.warnings
    assert len(of.pictures) == 6
    picture = of.pictures[3]
    assert (picture.id, picture.split) == ("02/image01", "val")
    values = cv2.imread(str(maps / "02/label01.png"), cv2.IMREAD_UNCHANGED)
    masks = {name: values == value for value, name in enumerate(LEGEND, start=1)}
    assert picture.areas == {name: masks[name].mean() for name in ANATOMIES}
    assert picture.shows == {"spleen": masks["spleen"].any()}
    for name in ANATOMIES:
        known = picture.known[name]
        assert known.anatomy == pytest.approx(masks[name].mean(), abs=0.02)
        assert known.anatomy + known.background == pytest.approx(1)
        assert (read_drawn(picture, name, of.legends) == masks[name]).all()


def test_problems_of_label_maps_are_listed(maps, read):
    (maps / "01/label00.png").unlink()
    (maps / "02/image00.png").write_bytes(b"")
    write_png(maps / "02/label01.png", np.full((48, 64), 9, np.uint8))
    (maps / "03/scan.dcm").write_text("")
    of = read(root=maps)
    assert [problem.split(": ", 1)[1].split(" ")[0] for problem in of.problems] == [
        "its", "is", "holds", "1", "1",
    ]  # fmt: skip
    assert [picture.id for picture in of.pictures] == ["01/image01", "03/image00", "03/image01"]
    assert "scan.dcm" in "".join(of.warnings)


def test_nothing_that_can_be_used_is_an_error(maps, read):
    (maps / "anatomies.txt").write_text("liver\nliver\n")
    with pytest.raises(DataError, match="names liver twice"):
        read(root=maps)


def test_several_data_sets_are_surveyed_together(maps, read):
    other = DataSet(maps, "maps", {"spleen": "colon"})
    of = read(others=[other], splits=Splits(val=[2], test=["maps.3"]))
    assert not of.problems
    assert len(of.pictures) == 18 + 6
    picture = of.pictures[-1]
    assert (picture.id, picture.split) == ("maps.03/image01", "test")
    values = cv2.imread(str(maps / "03/label01.png"), cv2.IMREAD_UNCHANGED)
    mask = (values == 1) | (values == 2)
    assert picture.areas["colon"] == mask.mean()
    assert (read_drawn(picture, "colon", of.legends) == mask).all()


@pytest.mark.skipif(not (REAL_DATA / "cholecseg8k").is_dir(), reason="the real frames are not here")
def test_real_frames_in_both_layouts(read):
    data = REAL_DATA / "cholecseg8k"
    anatomies = (data / "anatomies.txt").read_text().split()
    settings = {"anatomies": anatomies, "splits": Splits(val=[37], test=[35, 55])}
    of = read(root=data / "labelmap", image_size=(256, 320), **settings)
    assert len(of.pictures) == 41 and not of.problems
    by_digest = {picture.frames[0].digest: picture for picture in of.pictures}
    masks = read(root=data / "single", image_size=(256, 320), **settings)
    assert len(masks.pictures) == 41
    for picture in masks.pictures:
        same = by_digest[picture.frames[0].digest]
        ((anatomy, area),) = picture.areas.items()
        assert area == pytest.approx(same.areas[anatomy])
        assert picture.look.brightness == same.look.brightness
        # What is known of the frame from its mask and weak labels is true of its map.
        for name in anatomies:
            assert picture.known[name].anatomy <= same.known[name].anatomy + 0.01
            assert picture.known[name].background <= same.known[name].background + 0.01
