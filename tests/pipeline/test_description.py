"""Measures of a data set, each against a slow and literal version."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from pipeline.description import describe, exact_duplicates, examples, near_duplicates, of_anatomy
from pipeline.dsad import Source
from pipeline.perceptual_hash import BITS
from pipeline.preparation.pictures import Checked
from pipeline.survey import Known, Look, Picture, Survey

ANATOMIES = ("liver", "colon", "spleen")


def picture(anatomy="liver", surgery="01", name="image00", split="train", **values):
    """A frame without any file."""
    place = Path("data") / anatomy / surgery / f"{name}.png"
    mask = None if split == "unlabelled" else place
    frame = Checked(
        Source(anatomy, surgery, name, place, mask),
        "train" if split in ("all", "unlabelled") else split,
        values.pop("digest", f"{anatomy}/{surgery}/{name}"),
        values.pop("size", (48, 64)),
        covered=values.pop("area", 0.2),
    )
    look = Look(
        values.pop("brightness", 80.0), values.pop("dark", False), values.pop("fingerprint", None)
    )
    known = {other: Known(0.1, 0.5 * (other == anatomy)) for other in ANATOMIES}
    shows = values.pop("shows", {})
    assert not values
    return Picture([frame], look, split, shows, {} if mask is None else known)


def merged(*pictures):
    """One picture with the masks of several."""
    return replace(pictures[0], frames=[each.frames[0] for each in pictures])


def random_pictures(number=80):
    rng = np.random.default_rng(5)
    splits = {"01": "train", "1": "train", "02": "val", "03": "test", "04": "train"}
    pictures = []
    for i in range(number):
        surgery = str(rng.choice(list(splits)))
        shows = {name: bool(rng.random() < 0.5) for name in ANATOMIES if rng.random() < 0.6}
        each = picture(
            str(rng.choice(ANATOMIES)),
            surgery,
            f"image{i:02d}",
            splits[surgery],
            area=float(max(0, rng.uniform(-0.2, 0.6))),
            size=(48, 64) if rng.random() < 0.7 else (30, 40),
            brightness=float(rng.uniform(0, 255)),
            dark=bool(rng.random() < 0.1),
            shows=shows,
        )
        pictures.append(each)
    return pictures


def literal(pictures, anatomy):
    """Counts by loops alone."""
    frames = empty = dark = 0
    surgeries, areas, brightness, sizes = set(), [], [], {}
    elsewhere = {"shown": 0, "absent": 0, "unknown": 0}
    known = background = 0.0
    for each in pictures:
        known += each.known[anatomy].anatomy
        background += each.known[anatomy].background
        if each.source.anatomy != anatomy:
            if anatomy not in each.shows:
                elsewhere["unknown"] += 1
            else:
                elsewhere["shown" if each.shows[anatomy] else "absent"] += 1
            continue
        frames += 1
        surgeries.add(int(each.surgery))
        dark += each.look.dark
        brightness.append(each.look.brightness)
        height, width = each.frames[0].size
        sizes[f"{width}x{height}"] = sizes.get(f"{width}x{height}", 0) + 1
        if each.areas[anatomy] == 0:
            empty += 1
        else:
            areas.append(each.areas[anatomy])
    return {
        "frames": frames,
        "surgeries": len(surgeries),
        "sizes": sizes,
        "brightness": [median(brightness), min(brightness), max(brightness)],
        "nearly_black": dark,
        "empty": empty,
        "area": [median(areas), min(areas), max(areas)],
        "elsewhere": elsewhere,
        "known": [known / len(pictures), background / len(pictures)],
    }


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_an_anatomy_is_counted_as_by_loops(anatomy):
    pictures = [each for each in random_pictures() if each.split == "train"]
    measured = of_anatomy(pictures, anatomy)
    expected = literal(pictures, anatomy)
    for name in ("frames", "surgeries", "sizes", "nearly_black", "empty", "elsewhere"):
        assert measured[name] == expected[name]
    assert list(measured["area"].values()) == pytest.approx(expected["area"], abs=1e-6)
    assert list(measured["brightness"].values()) == pytest.approx(expected["brightness"], abs=0.06)
    known = measured["known"]
    assert [known["anatomy"], known["background"]] == pytest.approx(expected["known"], abs=1e-6)
    assert sum(known.values()) == pytest.approx(1, abs=1e-5)


def test_the_whole_and_its_parts():
    pictures = [*random_pictures(), picture("unlabelled", "04", "film", "unlabelled")]
    of = describe(Survey(ANATOMIES, pictures, ["a problem"], ["a warning"], {}))
    assert list(of["splits"]) == ["train", "val", "test", "unlabelled"]
    assert of["frames"] == sum(part["frames"] for part in of["splits"].values()) == 81
    assert of["masks"] == 80
    assert of["surgery_count"] == 4  # 01 and 1 are one
    assert of["splits"]["unlabelled"]["anatomies"] == {}
    assert (of["problems"], of["warnings"]) == (["a problem"], ["a warning"])
    for part in ("train", "val", "test"):
        for name in ANATOMIES:
            own = [p for p in pictures if p.split == part and name in p.areas]
            assert of["splits"][part]["anatomies"][name]["frames"] == len(own)
    assert of["surgeries"]["04"]["splits"] == ["train", "unlabelled"]
    shown = sum(surgery["anatomies"]["liver"] for surgery in of["surgeries"].values())
    assert shown == sum(bool(each.areas.get("liver")) for each in pictures)


def test_a_picture_with_two_masks_counts_once_and_for_both():
    both = merged(picture("liver", area=0.1), picture("colon", area=0.0))
    of = describe(Survey(ANATOMIES, [both, picture("liver", name="image01")], [], [], {}))
    assert (of["frames"], of["masks"]) == (2, 3)
    anatomies = of["splits"]["train"]["anatomies"]
    assert [anatomies[name]["frames"] for name in ANATOMIES] == [2, 1, 0]
    assert anatomies["colon"]["empty"] == 1
    assert anatomies["colon"]["elsewhere"]["unknown"] == 1
    assert of["surgeries"]["01"]["anatomies"] == {"liver": 2, "colon": 0, "spleen": 0}


def test_an_anatomy_without_frames_has_no_measures():
    measured = of_anatomy([picture("liver")], "colon")
    assert measured["frames"] == 0
    assert measured["area"] == {"median": None, "least": None, "most": None}
    assert measured["elsewhere"] == {"shown": 0, "absent": 0, "unknown": 1}


@pytest.mark.parametrize(
    ("second", "where"),
    [
        ({"surgery": "02", "split": "val"}, "two splits"),
        ({"surgery": "02"}, "two surgeries"),
        ({"name": "image01"}, "one surgery"),
        ({"anatomy": "colon"}, None),
        ({"surgery": "1", "anatomy": "colon"}, None),
    ],
)
def test_the_same_pixels(second, where):
    pictures = [picture(digest="same"), picture("spleen"), picture(**second, digest="same")]
    groups = exact_duplicates(pictures)
    assert [group["where"] for group in groups] == ([where] if where else [])
    if where:
        assert groups[0]["frames"] == [pictures[0].id, pictures[2].id]


def test_files_of_one_picture_are_told_apart():
    """Also where a picture is one frame: of several masks, or of a label map."""
    first, second = (picture(name, "01", digest="same") for name in ("liver", "colon"))
    assert exact_duplicates([merged(first, second)]) == []
    moved = merged(first, picture("colon", "02", digest="same"))
    assert exact_duplicates([moved])[0]["where"] == "two surgeries"
    source = replace(first.source, value=2)
    of_map = replace(first, frames=[replace(first.frames[0], source=source)] * 2)
    assert exact_duplicates([of_map]) == []


def test_frames_that_look_alike_are_pairs_of_two_surgeries():
    bits = np.random.default_rng(0).random(BITS) < 0.5
    changed = bits ^ (np.arange(BITS) < 5)
    pictures = [
        picture(surgery="01", fingerprint=bits),
        picture(surgery="1", name="image01", fingerprint=bits),
        picture(surgery="02", split="val", fingerprint=changed),
        picture("colon", "02", split="val", digest="liver/02/image00", fingerprint=changed),
        picture(surgery="03", fingerprint=~bits),
        picture(surgery="04"),
    ]
    near = near_duplicates(pictures)
    assert near["near_pairs"] == 2
    assert near["near"][0] == {
        "distance": 5,
        "splits": ["train", "val"],
        "frames": ["liver/01/image00", "liver/02/image00"],
    }
    assert near["near"][1]["frames"] == ["liver/1/image01", "liver/02/image00"]


def test_examples_are_extremes_the_median_and_other_surgeries():
    pictures = [
        picture(surgery=f"{i % 7:02d}", name=f"image{i}", area=(i + 1) / 100) for i in range(61)
    ]
    pictures.append(picture(name="empty", area=0.0))
    selected = examples(pictures[::-1], "liver")
    areas = [each.areas["liver"] for each in selected]
    assert len(selected) == 5
    assert (areas[0], areas[2], areas[4]) == (0.01, 0.31, 0.61)
    assert areas == sorted(areas)
    assert len({each.surgery for each in selected}) == 5
    assert examples(pictures[:3], "liver") == pictures[:3]
    assert examples(pictures, "colon") == []
