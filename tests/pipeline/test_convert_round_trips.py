"""Converted, exported for an annotator, and converted again: every pixel comes back."""

import json
from functools import partial

import numpy as np
import public_layouts as layouts
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_masks

from pipeline.convert import coco, dsad_multilabel, nnunet
from pipeline.convert.exports import INSTANCES, CocoExport, Export, NnunetExport
from pipeline.convert.formats import Labels
from pipeline.convert.plans import Content
from pipeline.convert.run_lengths import decoded_runs, run_length_problem
from pipeline.convert.unknown_pixels import UnknownPixels
from pipeline.convert.writing import Target, convert
from pipeline.dsad import DataError, read_frame, read_mask
from pipeline.label_maps import read_map

quick = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANATOMIES = ("liver", "left ureter", "colon")
PLACES = ("01/image00", "01/image01", "case b/x")
SIDES = st.integers(1, 20)
SIZES = st.tuples(SIDES, SIDES)


@st.composite
def label_maps(draw):
    """A map (H, W) of 0 .. 3 for each place, each of its own size."""
    maps = []
    for _ in PLACES:
        maps.append(draw(hnp.arrays(np.uint8, draw(SIZES), elements=st.integers(0, 3))))
    return maps


@st.composite
def stacks_of_masks(draw):
    """Masks (3, H, W) for each place, which may overlap and be empty."""
    stacks = []
    for _ in PLACES:
        stacks.append(draw(hnp.arrays(np.bool_, (3, *draw(SIZES)))))
    return stacks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A new folder for each example."""
    return lambda: tmp_path_factory.mktemp("example")


def pixels(size, seed):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def write(plan, folder):
    assert plan.problems == [] or plan.problems == ()
    convert(plan, Target(folder), lambda summary: "about the source\n")


def export(kind, folder, stacks):
    writer: Export = kind(folder, ANATOMIES)
    for seed, (place, masks) in enumerate(zip(PLACES, stacks, strict=True)):
        writer.write(place, pixels(masks.shape[1:], seed), masks)
    writer.close()


def read_maps(folder):
    """Frames and maps of a converted folder, in the order of PLACES."""
    names = (folder / "anatomies.txt").read_text().splitlines()
    assert names == list(ANATOMIES)
    for place in ("01/{}00", "01/{}01", "case b/{}00"):
        image = read_frame(folder / f"{place.format('image')}.png")
        path = folder / f"{place.format('label')}.png"
        yield image, read_map(path, image.shape[:2], len(names), "anatomies.txt")


def as_masks(values):
    return np.stack([values == value for value in range(1, len(ANATOMIES) + 1)])


COCO = partial(coco.plan, options=coco.Options("^([^/]+)/", Labels.MAPS))
NNUNET = partial(nnunet.plan, options=nnunet.Options("^(.+?)__"))


@quick
@given(label_maps(), st.sampled_from([(CocoExport, COCO), (NnunetExport, NNUNET)]))
def test_maps_survive_export_conversion_export_and_conversion(folder, maps, way):
    kind, plan = way
    first, second = folder(), folder()
    export(kind, first / "exported", [as_masks(values) for values in maps])
    write(plan(first / "exported"), first / "converted")
    again = list(read_maps(first / "converted"))
    for seed, ((image, values), expected) in enumerate(zip(again, maps, strict=True)):
        assert (values == expected).all()
        assert (image == pixels(expected.shape, seed)).all()
    export(kind, second / "exported", [as_masks(values) for _, values in again])
    write(plan(second / "exported"), second / "converted")
    for (_, values), expected in zip(read_maps(second / "converted"), maps, strict=True):
        assert (values == expected).all()


@quick
@given(stacks_of_masks())
def test_overlapping_masks_survive_as_masks(folder, stacks):
    root = folder()
    export(CocoExport, root / "exported", stacks)
    options = coco.Options("^([^/]+)/", Labels.MASKS)
    write(coco.plan(root / "exported", options), root / "converted")
    for place, masks in zip(("01/mask00", "01/mask01", "case b/mask00"), stacks, strict=True):
        for anatomy, mask in zip(ANATOMIES, masks, strict=True):
            converted, odd = read_mask(root / "converted" / anatomy / f"{place}.png")
            assert (converted == mask).all() and not odd


@quick
@given(hnp.arrays(np.bool_, SIZES))
def test_run_lengths_are_those_of_the_library(mask):
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = encoded["counts"].decode()
    runs = decoded_runs(text)
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    assert (mask == values.reshape(mask.shape[::-1]).T).all()
    assert run_length_problem({"size": list(mask.shape), "counts": text}, mask.shape) == ""


@quick
@given(hnp.arrays(np.uint8, SIZES, elements=st.integers(0, 1)), st.text(max_size=8), st.data())
def test_no_broken_text_reaches_the_library(mask, noise, data):
    """What passes the check decodes to zeros and ones alone."""
    text = coco_masks.encode(np.asfortranarray(mask))["counts"].decode()
    at = data.draw(st.integers(0, len(text)))
    broken = {"size": list(mask.shape), "counts": text[:at] + noise + text[at + len(noise) :]}
    if not run_length_problem(broken, mask.shape):
        decoded = coco_masks.decode(broken)
        assert decoded.shape == mask.shape and decoded.max(initial=0) <= 1


@quick
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(2, 12), st.integers(2, 12)), elements=st.integers(0, 4)
    ),
    st.integers(0, 4),
)
def test_filled_pixels_take_the_label_of_the_nearest_known_one(values, reach):
    """By a search over all pairs of pixels; 4 is unknown."""
    unknown = values == 4
    content = Content(np.zeros((*values.shape, 3), np.uint8), {"liver": values == 1}, unknown)
    known = np.argwhere(~unknown)
    distances = [
        np.sqrt(((known - place) ** 2).sum(axis=1)) for place in np.argwhere(unknown)
    ]  # to all known pixels
    farthest = max((each.min(initial=np.inf) for each in distances), default=0)
    policy = UnknownPixels(fill=reach)
    if np.ceil(farthest) > reach:
        with pytest.raises(DataError, match="have no known label"):
            policy.settle(content, "frame")
        assert UnknownPixels(reach, skip=True).settle(content, "frame") is None
    else:
        assert policy.settle(content, "frame").unknown is None or not unknown.any()
    filled = UnknownPixels(reach, keep=True).settle(content, "frame")
    assert (filled.masks["liver"][~unknown] == (values == 1)[~unknown]).all()
    for place, each in zip(np.argwhere(unknown), distances, strict=True):
        if each.min(initial=np.inf) > reach:
            assert filled.unknown[tuple(place)] and not filled.masks["liver"][tuple(place)]
            continue
        assert filled.unknown is None or not filled.unknown[tuple(place)]
        nearest = known[np.isclose(each, each.min())]
        labels = {bool(values[tuple(one)] == 1) for one in nearest}
        assert bool(filled.masks["liver"][tuple(place)]) in labels


def test_dsad_multilabel_through_coco_and_back(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set")
    write(dsad_multilabel.plan(root, dsad_multilabel.Options()), tmp_path / "first")
    names = (tmp_path / "first" / "anatomies.txt").read_text().split()
    writer = CocoExport(tmp_path / "exported", names)
    labels = sorted((tmp_path / "first").glob("*/label*.png"))
    for label in labels:
        image = label.with_name(label.name.replace("label", "image"))
        masks = np.stack([layouts.label_map(label) == value for value in (1, 2, 3)])
        place = image.relative_to(tmp_path / "first").with_suffix("").as_posix()
        writer.write(place, read_frame(image), masks)
    writer.close()
    assert json.loads((tmp_path / "exported" / INSTANCES).read_text())["annotations"]
    write(COCO(tmp_path / "exported"), tmp_path / "second")
    for label in labels:
        again = tmp_path / "second" / label.relative_to(tmp_path / "first")
        assert again.read_bytes() == label.read_bytes()
