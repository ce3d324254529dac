"""Data sets of others: each public layout is read, and what does not match is reported."""

import csv
import json
import shutil
from fractions import Fraction
from functools import partial
from io import BytesIO

import cv2
import numpy as np
import public_layouts as layouts
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import REAL_DATA, write_png
from PIL import Image

from pipeline.annotations import read_weak_labels
from pipeline.convert import (
    cholecseg8k,
    coco,
    dsad_multilabel,
    dsad_parquet,
    endoscapes,
    nnunet,
    video,
)
from pipeline.convert.formats import (
    FORMATS,
    CholecMasks,
    EndoscapesMasks,
    Labels,
    ParquetConfig,
)
from pipeline.convert.run_lengths import decoded_runs, run_length_problem
from pipeline.convert.unknown_pixels import UnknownPixels
from pipeline.convert.writing import Target, convert
from pipeline.dsad import DataError, DataSet, read_frame, read_mask, scan, scan_unlabelled, unused
from pipeline.errors import MtkdError
from pipeline.files import walk
from pipeline.label_maps import read_map
from pipeline.preparation.scan import scan_all
from pipeline.settings import Splits

FOLDER = "^([^/]+)/"


def write(plan, folder, **target):
    """Convert a plan, and return the files that are there."""
    unknown = UnknownPixels(target.pop("fill", 0), target.pop("skip", False))
    convert(plan, Target(folder, unknown, **target), lambda summary: "about the source\n")
    return sorted(path.relative_to(folder).as_posix() for path in walk(folder))


def problems_of(plan, folder, **target):
    """What a conversion refuses; nothing may have been written."""
    with pytest.raises(DataError) as caught:
        write(plan, folder, **target)
    assert not folder.exists() or not any(folder.iterdir())
    return caught.value.problems


def rows_of(folder):
    with (folder / "sources.csv").open(newline="") as file:
        return {row["file"]: row["original"] for row in csv.DictReader(file)}


def masks_of(folder, surgery, number, anatomies):
    return np.stack(
        [read_mask(folder / name / surgery / f"mask{number:02d}.png")[0] for name in anatomies]
    )


# CholecSeg8k


@pytest.mark.parametrize("masks", CholecMasks)
def test_cholecseg8k_becomes_complete_maps(tmp_path, masks):
    root = layouts.cholecseg8k(tmp_path / "set")
    plan = cholecseg8k.plan(root, cholecseg8k.Options(masks))
    out = tmp_path / "out"
    files = write(plan, out)
    assert "video01/label00.png" in files and "video12/image01.png" in files
    assert (out / "anatomies.txt").read_text().splitlines() == list(cholecseg8k.ANATOMIES)
    values = read_map(out / "video01" / "label00.png", layouts.SIZE, 12, "anatomies.txt")
    liver = cholecseg8k.ANATOMIES.index("liver") + 1
    assert ((values == liver) == layouts.discs(80, 1)[0]).all()
    assert set(np.unique(values)) == {0, liver}
    assert (read_frame(out / "video12" / "image01.png") == layouts.frame(91)).all()
    origin = "video01/video01_00080/frame_80_endo.png"
    assert rows_of(out)["video01/image00.png"] == origin
    sources, _, problems = scan_all([DataSet(out)], ["liver"], "data.anatomies")
    assert problems == [] and len(sources) == 4
    assert unused(out, ["liver"], None, sources) == []


def test_cholecseg8k_as_masks_is_what_prepare_reads(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set")
    out = tmp_path / "out"
    write(cholecseg8k.plan(root, cholecseg8k.Options(labels=Labels.MASKS)), out)
    sources, problems = scan(out, cholecseg8k.ANATOMIES)
    assert problems == [] and len(sources) == 12 * 4
    images = [source.image for source in sources if source.id.endswith("video01/image00")]
    assert len({path.stat().st_ino for path in images}) == 1  # one file in twelve places
    weak = read_weak_labels(out / "fat" / "video01" / "weak_labels.csv", cholecseg8k.ANATOMIES)
    assert weak.named and weak.shows[0]["liver"] and not weak.shows[0]["fat"]


def test_the_border_of_watershed_masks_never_becomes_background(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set", videos=["video01"], frames=1)
    mask = next(root.rglob("*watershed*"))
    values = layouts.label_map(mask)
    values[[0, -1]] = layouts.BORDER
    write_png(mask, values)
    masks = cholecseg8k.plan(root, cholecseg8k.Options(labels=Labels.MASKS))
    (problem,) = problems_of(masks, tmp_path / "out")
    assert "frame_80_endo.png: 112 pixels (5.00%) have no known label (value 255" in problem
    assert "--as maps keeps them" in problem
    assert "--fill 1 gives" in problem and "--skip-unknown leaves" in problem
    plan = cholecseg8k.plan(root, cholecseg8k.Options())
    assert problems_of(plan, tmp_path / "out", skip=True) == (
        "nothing is left to convert: all frames were left out, 1 with pixels without a label, such "
        "as video01/video01_00080/frame_80_endo.png",
    )
    write(plan, tmp_path / "out", fill=1)
    result = layouts.label_map(tmp_path / "out" / "video01" / "label00.png")
    assert (result[0] == result[1]).all() and (result[-1] == result[-2]).all()
    write(plan, tmp_path / "kept")
    kept = layouts.label_map(tmp_path / "kept" / "video01" / "label00.png")
    assert (kept[[0, -1]] == 255).all() and (kept[1:-1] == result[1:-1]).all()
    lines = (tmp_path / "kept" / "anatomies.txt").read_text().splitlines()
    assert lines == [*cholecseg8k.ANATOMIES, "255 = not labelled"]
    sources, _, problems = scan_all([DataSet(tmp_path / "kept")], ["liver"], "data.anatomies")
    assert problems == [] and len(sources) == 1


def test_unknown_colours_are_refused_with_their_values(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set", videos=["video01"], frames=1)
    mask = next(root.rglob("*color*"))
    colours = layouts.label_map(mask)[..., ::-1].copy()
    colours[:3, :3] = 7, 8, 9
    write_png(mask, colours)
    (problem,) = problems_of(
        cholecseg8k.plan(root, cholecseg8k.Options(CholecMasks.COLOUR)), tmp_path / "out"
    )
    assert "9 pixels" in problem and "colour (7, 8, 9) in" in problem


def test_a_disk_without_links_holds_copies(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    root = layouts.cholecseg8k(tmp_path / "set", frames=1)
    write(cholecseg8k.plan(root, cholecseg8k.Options(labels=Labels.MASKS)), tmp_path / "out")
    images = [path.read_bytes() for path in tmp_path.glob("out/*/video01/image00.png")]
    assert len(images) == 12 and len(set(images)) == 1


def test_every_problem_of_a_set_is_reported_with_its_file(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set", frames=3)
    first, second, third, fourth, *_ = sorted(root.rglob("*_endo.png"))
    third.with_name(third.name.replace(".png", "_watershed_mask.png")).unlink()
    first.write_bytes(first.read_bytes()[:200])
    write_png(second, layouts.frame(size=(20, 20)))
    (root / "elsewhere").mkdir()
    shutil.copy(fourth, root / "elsewhere")
    problems = problems_of(cholecseg8k.plan(root, cholecseg8k.Options()), tmp_path / "out")
    text = "\n".join(problems)
    assert len(problems) == 4
    assert f"{third}: its mask frame_82_endo_watershed_mask.png is missing" in text
    assert f"{first}: is truncated" in text
    assert f"{second}: frame and labels have different sizes, 20x20 and 56x40" in text
    assert "does not lie in a folder of a video, such as video01" in text


def test_files_that_cholecseg8k_does_not_have_are_told(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set", videos=["video01"])
    folder = root / "video01" / "video01_00080"
    shutil.copy(folder / "frame_80_endo.png", folder / "frame_80_endo_mask.png")
    (folder / "frame_81_endo.png").rename(folder / "frame_81.png")
    shutil.copy(folder / "frame_80_endo.png", folder / "frame_90_endo.jpg")
    problems = problems_of(cholecseg8k.plan(root, cholecseg8k.Options()), tmp_path / "out")
    names = [
        "frame_81.png",
        "frame_81_endo_color_mask.png",
        "frame_81_endo_watershed_mask.png",
        "frame_90_endo.jpg",
    ]
    assert [problem.split(":")[0] for problem in problems] == [f"{folder / n}" for n in names]


def test_grey_values_in_a_palette_are_looked_up(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set", videos=["video01"], frames=1)
    mask = next(root.rglob("*watershed*"))
    liver = layouts.label_map(mask) == layouts.LIVER
    picture = Image.fromarray(liver[..., 0].astype(np.uint8))
    picture.putpalette([layouts.BLACK] * 3 + [layouts.LIVER] * 3)
    picture.save(mask)
    (frame,) = cholecseg8k.plan(root, cholecseg8k.Options()).frames
    assert (frame.read().masks["liver"] == liver[..., 0]).all()


@pytest.mark.skipif(not (REAL_DATA / "cholecseg8k").is_dir(), reason="no real data here")
def test_real_frames_come_back_from_masks_that_were_built_of_their_labels(tmp_path):
    """The label maps of 41 real frames, with their values as CholecSeg8k writes them."""
    names = ["abdominal_wall", "liver", "gastrointestinal_tract", "fat", "connective_tissue"]
    codes = {name: value for name, value, _ in cholecseg8k.CLASSES}
    table = np.array([50, *(codes[name] for name in names), 22, 31], np.uint8)
    expected = {}
    for label in sorted((REAL_DATA / "cholecseg8k" / "labelmap").glob("*/label*.png")):
        video_name = f"video{label.parent.name}"
        number = int(label.stem.removeprefix("label"))
        place = tmp_path / "set" / video_name / f"{video_name}_00000" / f"frame_{number}_endo"
        values = layouts.label_map(label)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(label.with_name(f"image{number:02d}.png"), f"{place}.png")
        write_png(place.with_name(f"{place.name}_watershed_mask.png"), table[values])
        expected[video_name, number] = table[values]
    out = tmp_path / "out"
    write(cholecseg8k.plan(tmp_path / "set", cholecseg8k.Options()), out)
    back = np.array([50, *(value for _, value, _ in cholecseg8k.CLASSES)], np.uint8)
    assert len(expected) == 41
    for (video_name, number), values in expected.items():
        converted = layouts.label_map(out / video_name / f"label{number:02d}.png")
        assert (back[converted] == values).all()


# DSAD's multi-organ subset


def test_dsad_multilabel_becomes_maps_of_the_organs_that_are_labelled(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set")
    out = tmp_path / "out"
    write(dsad_multilabel.plan(root, dsad_multilabel.Options()), out)
    assert (out / "anatomies.txt").read_text().split() == list(layouts.ORGANS)
    values = layouts.label_map(out / "31" / "label00.png")
    for value, mask in enumerate(layouts.discs(100, 3), start=1):
        assert ((values == value) == mask).all()
    second = layouts.label_map(out / "31" / "label01.png")
    assert 3 not in second and rows_of(out)["31/image01.png"] == "multilabel/31/image01.png"


def test_a_missing_mask_is_absence_only_where_that_is_known(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set", surgeries=["02"])
    folder = root / "multilabel" / "02"
    (folder / "mask00_liver.png").unlink()
    (folder / "mask07_liver.png").write_bytes(b"")
    (folder / "mask00_liber.png").write_bytes((folder / "mask00_colon.png").read_bytes())
    problems = problems_of(dsad_multilabel.plan(root, dsad_multilabel.Options()), tmp_path / "out")
    text = "\n".join(problems)
    assert "its mask of liver is missing, and weak_labels.csv says that the frame shows it" in text
    assert "mask07_liver.png: its frame image07.png is missing" in text
    assert "'liber' is no organ of DSAD" in text
    for name in ("mask07_liver.png", "mask00_liber.png"):
        (folder / name).unlink()
    options = dsad_multilabel.Options(missing_is_absent=True)
    files = write(dsad_multilabel.plan(root, options), tmp_path / "out")
    assert "02/label00.png" in files


def test_masks_that_overlap_need_the_layout_that_can_hold_them(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set", surgeries=["02"], frames=1)
    folder = root / "multilabel" / "02"
    both = layouts.discs(0, 3)
    write_png(folder / "mask00_liver.png", layouts.grey(both[1] | both[0]))
    plan = partial(dsad_multilabel.plan, root)
    (problem,) = problems_of(plan(dsad_multilabel.Options()), tmp_path / "out")
    assert f"{both[0].sum()} pixels belong to colon and liver" in problem
    assert "use --as masks" in problem
    write(plan(dsad_multilabel.Options(Labels.MASKS)), tmp_path / "out")
    masks = masks_of(tmp_path / "out", "02", 0, layouts.ORGANS)
    assert (masks == [both[0], both[1] | both[0], both[2]]).all()


# DSAD's Hugging Face edition


def test_files_of_dsad_multilabel_that_are_not_its_own(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set")
    folder = root / "multilabel" / "02"
    shutil.copy(folder / "mask00_liver.png", folder / "mask00_appendix.png")
    (folder / "image01.png").rename(folder / "image01.jpg")
    problems = problems_of(dsad_multilabel.plan(root, dsad_multilabel.Options()), tmp_path / "out")
    assert [problem.removeprefix(f"{folder}/") for problem in problems] == [
        "image01.jpg: expected imageMM.png or maskMM_<organ>.png: rename it, or move it away",
        "mask00_appendix.png: 'appendix' is no organ of DSAD",
        "mask01_colon.png: its frame image01.png is missing",
    ]


def test_frames_of_dsad_multilabel_in_other_folders_are_told(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set") / "multilabel"
    shutil.copytree(root / "02", root / "more" / "09")
    shutil.copy(root / "02" / "image00.png", root / "image08.png")
    problems = problems_of(dsad_multilabel.plan(root, dsad_multilabel.Options()), tmp_path / "out")
    told = {problem.split(":")[0] for problem in problems}
    assert told == {f"{root}/image08.png", *map(str, (root / "more" / "09").glob("*.png"))}


def test_what_is_odd_about_a_frame_is_told(tmp_path):
    root = layouts.dsad_multilabel(tmp_path / "set")
    folder = root / "multilabel" / "02"
    write_png(folder / "mask01_stomach.png", layouts.grey(layouts.discs(1, 1)[0]) // 2)
    told = []
    plan = dsad_multilabel.plan(root, dsad_multilabel.Options(Labels.MASKS))
    convert(plan, Target(tmp_path / "out"), lambda summary: told.extend(summary.notes) or "")
    mask = f"{folder / 'mask01_stomach.png'}"
    assert told == [
        f"{mask}: holds values between 0 and full; all above 0 is stomach",
        f"{mask}: weak_labels.csv says that stomach is not there; the mask counts",
    ]


@pytest.mark.parametrize("config", ParquetConfig)
def test_all_configurations_of_the_parquet_edition(tmp_path, config):
    layouts.dsad_parquet(tmp_path / "set", config)
    out = tmp_path / "out"
    plan = dsad_parquet.plan(tmp_path / "set", dsad_parquet.Options())
    files = write(plan, out)
    organs = layouts.ORGANS[:2] if config.startswith("single") else layouts.ORGANS
    sources, problems = scan(out, organs)
    assert problems == [] and len(sources) == 4 * len(organs)
    expected = layouts.discs(31, 3)[: len(organs)]
    assert (masks_of(out, "31", 0, organs) == expected).all()
    assert (read_frame(out / "liver" / "02" / "image01.png") == layouts.frame(1)).all()
    assert ("colon/02/anno_1/mask00.png" in files) == config.endswith("rater")
    shows = read_weak_labels(out / "liver" / "31" / "weak_labels.csv", layouts.WEAK).shows
    assert shows[0]["stomach"] and not shows[1]["stomach"] and not shows[1]["uterus"]


def test_a_configuration_must_be_chosen_where_there_are_several(tmp_path):
    for config in ("single_organ", "multi_organ"):
        layouts.dsad_parquet(tmp_path, config)
    with pytest.raises(DataError, match="has multi_organ, single_organ: choose one with --config"):
        dsad_parquet.plan(tmp_path, dsad_parquet.Options())
    plan = dsad_parquet.plan(tmp_path, dsad_parquet.Options(ParquetConfig.MULTI_ORGAN))
    assert len(plan.frames) == 4


def test_a_row_of_one_organ_is_no_map(tmp_path):
    root = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.SINGLE_ORGAN)
    with pytest.raises(DataError, match="a map needs all: use --as masks"):
        dsad_parquet.plan(root, dsad_parquet.Options(labels=Labels.MAPS))


def test_the_library_datasets_may_number_organs(tmp_path):
    file = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.SINGLE_ORGAN)
    table = pq.read_table(file)
    names = ["stomach", *layouts.ORGANS[:2]]
    numbers = [names.index(organ) for organ in table.column("organ").to_pylist()]
    at = table.schema.get_field_index("organ")
    feature = {"organ": {"names": names, "_type": "ClassLabel"}}
    kept = {b"huggingface": json.dumps({"info": {"features": feature}}).encode()}
    table = table.set_column(at, "organ", pa.array(numbers))
    pq.write_table(table.replace_schema_metadata(kept), file)
    plan = dsad_parquet.plan(file, dsad_parquet.Options())
    assert plan.problems == [] and list(plan.anatomies) == ["colon", "liver"]
    pq.write_table(table.replace_schema_metadata(None), file)
    problems = dsad_parquet.plan(file, dsad_parquet.Options()).problems
    assert sorted(problems) == [f"{file}: organ '{n}' is none of DSAD" for n in (1, 2)]


def change_parquet(file, name, values):
    """Replace a column."""
    table = pq.read_table(file)
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, values), file)


def test_a_surgery_that_is_missing_is_not_guessed(tmp_path):
    file = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.MULTI_ORGAN)
    change_parquet(file, "surgery_id", pa.array([2.0, 2.0, None, 31.0]))
    plan = dsad_parquet.plan(file, dsad_parquet.Options())
    assert [frame.surgery for frame in plan.frames] == ["02", "02", "31"]
    (problem,) = plan.problems
    assert "its surgery 'None' is no name of a folder" in problem


def test_masks_that_are_blurred_are_refused(tmp_path):
    file = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.MULTI_ORGAN)
    content = BytesIO()
    Image.fromarray(layouts.grey(layouts.discs(1, 1)[0])).save(content, "jpeg")
    change_parquet(file, "mask_colon", pa.array([{"bytes": content.getvalue(), "path": "x"}] * 4))
    problems = problems_of(dsad_parquet.plan(file, dsad_parquet.Options()), tmp_path / "out")
    assert len(problems) == 4 and "is a JPEG, which blurs the edges" in problems[0]


def test_columns_of_pictures_that_are_not_used_are_told(tmp_path):
    file = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.SINGLE_ORGAN)
    table = pq.read_table(file)
    pq.write_table(table.append_column("overlay", table.column("mask")), file)
    assert (
        "pictures that are not used: overlay"
        in dsad_parquet.plan(file, dsad_parquet.Options()).notes
    )


def test_raters_may_be_numbered_masks(tmp_path):
    file = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.SINGLE_ORGAN_MULTI_RATER)
    table = pq.read_table(file)
    names = [name.replace("mask_anno_", "mask_") for name in table.column_names]
    pq.write_table(table.rename_columns(names), file)
    content = dsad_parquet.plan(file, dsad_parquet.Options()).frames[0].read()
    assert list(content.annotators["colon"]) == ["anno_1", "anno_2", "anno_3"]


def test_a_missing_expression_for_surgeries_is_said_once(tmp_path):
    file = layouts.dsad_parquet(tmp_path / "set", ParquetConfig.MULTI_ORGAN)
    pq.write_table(pq.read_table(file).drop_columns(["surgery_id"]), file)
    with pytest.raises(DataError, match=r"'02/image00[.]png'") as caught:
        dsad_parquet.plan(file, dsad_parquet.Options())
    assert len(caught.value.problems) == 1


def test_columns_that_are_called_otherwise_can_be_named(tmp_path):
    file = layouts.dsad_parquet(tmp_path, "single_organ")
    table = layouts.pq.read_table(file)
    names = {"surgery_id": "op", "mask": "truth", "frame_number": "no"}
    layouts.pq.write_table(
        table.rename_columns([names.get(n, n) for n in table.column_names]), file
    )
    with pytest.raises(DataError, match=r"truth \(struct.*Fix: --column ROLE=NAME"):
        dsad_parquet.plan(file, dsad_parquet.Options())
    columns = {"mask": "truth", "surgery": "op", "frame": "no"}
    plan = dsad_parquet.plan(file, dsad_parquet.Options(columns=columns))
    assert plan.problems == [] and {frame.surgery for frame in plan.frames} == {"02", "31"}
    regex = dsad_parquet.Options(columns={"mask": "truth"}, surgery=FOLDER)
    assert {frame.surgery for frame in dsad_parquet.plan(file, regex).frames} == {"02", "31"}
    with pytest.raises(DataError, match="--column: nope: unknown"):
        dsad_parquet.plan(file, dsad_parquet.Options(columns={"mask": "nope"}))


# Endoscapes


@pytest.mark.parametrize("masks", EndoscapesMasks)
@pytest.mark.parametrize("exchanged", [False, True])
def test_endoscapes_is_read_both_ways(tmp_path, masks, exchanged):
    root = layouts.endoscapes(tmp_path / "set", exchanged=exchanged)
    plan = endoscapes.plan(root, endoscapes.Options(masks))
    write(plan, tmp_path / "out")
    values = layouts.label_map(tmp_path / "out" / "165" / "label00.png")
    for value, mask in enumerate(layouts.discs(22925, 6), start=1):
        assert ((values == value) == mask).all()
    assert {path.parent.name for path in (tmp_path / "out").glob("*/image*")} == {"4", "165"}
    told = any("exchanged" in note for note in plan.notes)
    assert told == (exchanged and masks == EndoscapesMasks.COCO)


def test_frames_of_endoscapes_without_a_mask_are_told(tmp_path):
    root = layouts.endoscapes(tmp_path / "set")
    (root / "semseg" / "4_21725.png").unlink()
    frame = root / "train_seg" / "4_21725.jpg"
    shutil.copy(frame, root / "test_seg" / "extra.jpg")
    shutil.copy(frame, root / "test_seg" / "4_1.png")
    problems = problems_of(endoscapes.plan(root, endoscapes.Options()), tmp_path / "out")
    assert [problem.removeprefix(f"{root}/") for problem in problems] == [
        "train_seg/4_21725.jpg: its mask semseg/4_21725.png is missing",
        "test_seg/4_1.png: expected <video>_<frame>.jpg: rename it, or move it away",
        "test_seg/extra.jpg: expected <video>_<frame>.jpg: rename it, or move it away",
    ]


def test_another_order_of_endoscapes_values_is_told(tmp_path):
    root = layouts.endoscapes(tmp_path / "set")
    file = root / "seg_label_map.txt"
    names = [*layouts.ENDOSCAPES[:4], "tool", "gallbladder"]
    file.write_text("".join(f"{value}: {name}\n" for value, name in enumerate(names, start=1)))
    (problem,) = problems_of(endoscapes.plan(root, endoscapes.Options()), tmp_path / "out")
    assert problem == f"{file}: numbers gallbladder 6, here 5; tool 5, here 6: another edition?"


@pytest.mark.parametrize("masks", EndoscapesMasks)
def test_uncertain_pixels_of_endoscapes_are_not_background(tmp_path, masks):
    root = layouts.endoscapes(tmp_path / "set", uncertain=True)
    as_masks = endoscapes.plan(root, endoscapes.Options(masks, Labels.MASKS))
    problems = problems_of(as_masks, tmp_path / "out")
    assert len(problems) == 3 and all("6 pixels" in problem for problem in problems)
    assert all("value 255" in problem for problem in problems)
    plan = endoscapes.plan(root, endoscapes.Options(masks))
    assert len(write(plan, tmp_path / "out", fill=2)) == 3 * 2 + 3
    write(plan, tmp_path / "kept")
    for path in (tmp_path / "kept").rglob("label*.png"):
        values = layouts.label_map(path)
        assert (values[:2, :3] == 255).all() and (values == 255).sum() == 6


# COCO


def coco_plan(root, labels=Labels.MAPS, **options):
    return coco.plan(root, coco.Options(FOLDER, labels, **options))


def test_coco_keeps_surgeries_order_and_names(tmp_path):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    write(coco_plan(root), out)
    assert rows_of(out) == {
        "01/image00.png": "01/frame_1.png",
        "01/image01.png": "01/frame_10.png",
        "case b/image00.png": "case b/x.png",
    }
    values = layouts.label_map(out / "01" / "label01.png")
    for value, mask in enumerate(layouts.discs(1, 3), start=1):
        assert ((values == value) == mask).all()


def test_what_is_not_drawn_is_absent_only_if_the_user_says_so(tmp_path):
    root = layouts.coco(tmp_path / "set", names=["01/a.png", "01/b.png"])

    def keep_liver_of_the_first(value):
        value["annotations"] = [
            each
            for each in value["annotations"]
            if (each["image_id"], each["category_id"]) == (1, 2)
        ]

    layouts.change_coco(root, keep_liver_of_the_first)
    plan = coco_plan(root, Labels.DRAWN)
    assert "1 frames in which no anatomy is drawn are left out, such as 01/b.png" in plan.notes[0]
    files = write(plan, tmp_path / "drawn")
    assert files == [
        "SOURCE.md", "liver/01/image00.png", "liver/01/mask00.png", "sources.csv",
    ]  # fmt: skip
    files = write(coco_plan(root, Labels.MASKS), tmp_path / "masks")
    assert len([file for file in files if file.endswith(".png")]) == 2 * 3 * 2
    assert "colon/01/weak_labels.csv" in files


def test_polygons_and_both_kinds_of_run_lengths_give_the_same(tmp_path):
    mask = np.zeros(layouts.SIZE, bool)
    mask[5:15, 10:30] = True
    results = []
    for segmentation in (
        lambda mask: [[10, 5, 30, 5, 30, 15, 10, 15]],
        partial(layouts.run_lengths, compressed=False),
        layouts.run_lengths,
    ):
        root = tmp_path / str(len(results))
        layouts.coco(root, names=["01/a.png"])

        def replace(value, segmentation=segmentation):
            value["annotations"] = value["annotations"][:1]
            value["annotations"][0]["segmentation"] = segmentation(mask)

        layouts.change_coco(root, replace)
        plan = coco_plan(root)
        assert plan.problems == []
        results.append(plan.frames[0].read().masks["colon"])
    assert all((result == mask).all() for result in results)


BROKEN = {
    "a box alone": ({"segmentation": []}, "has no segmentation, such as a box alone"),
    "an odd polygon": ({"segmentation": [[1, 2, 3]]}, "a polygon is not a list of x and y"),
    "no numbers": ({"segmentation": [["a"] * 6]}, "something else than numbers"),
    "outside": ({"segmentation": [[0, 0, 900, 0, 9, 9]]}, "for another size?"),
    "text": ({"segmentation": "abc"}, "is a str, expected polygons or run lengths"),
    "another size": (
        {"segmentation": {"size": [9, 9], "counts": "91"}},
        "its run lengths are for the size [9, 9], and the frame has [40, 56]",
    ),
    "another image": ({"image_id": 77}, "image_id 77 is no image"),
    "another category": ({"category_id": 77}, "category_id 77 is no category"),
    "two categories": ({"category_id": [1]}, "category_id [1]: expected"),
    "no image": ({"image_id": None}, "has no image_id"),
    "two images": ({"image_id": [1]}, "image_id [1]: expected"),
    "negative runs": (
        {"segmentation": {"size": [40, 56], "counts": [2250, -10]}},
        "a run is no whole number from 0 on",
    ),
}


@pytest.mark.parametrize(("entry", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_annotation_is_named(tmp_path, entry, says):
    root = layouts.coco(tmp_path / "set")
    layouts.change_coco(root, lambda value: value["annotations"][4].update(entry))
    problems = problems_of(coco_plan(root), tmp_path / "out")
    assert len(problems) == 1 and says in problems[0]
    assert "instances_default.json: annotation" in problems[0]


def test_run_lengths_that_end_early_are_broken_and_not_guessed():
    """pycocotools 2.0.11 returns whatever was in the memory."""
    encoded = layouts.run_lengths(layouts.discs(0, 1)[0])
    assert run_length_problem(encoded, layouts.SIZE) == ""
    for end in range(len(encoded["counts"])):
        cut = encoded | {"counts": encoded["counts"][:end]}
        assert "run lengths are broken" in run_length_problem(cut, layouts.SIZE)
    for counts in (None, 7, "é", "~~"):
        assert "broken" in run_length_problem(encoded | {"counts": counts}, layouts.SIZE)
    with pytest.raises(ValueError, match="ends within a number"):
        decoded_runs("P")


def test_a_damaged_parquet_file_is_named(tmp_path):
    file = layouts.dsad_parquet(tmp_path, "multi_organ")
    content = bytearray(file.read_bytes())
    content[4:3000] = bytes(2996)
    file.write_bytes(content)
    plan = dsad_parquet.plan(file, dsad_parquet.Options())
    text = "\n".join(problems_of(plan, tmp_path / "out"))
    assert str(file) in text and ("is damaged" in text or "cannot be decoded" in text)
    file.write_bytes(content[:500])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        dsad_parquet.plan(file, dsad_parquet.Options())


def test_surgeries_are_never_guessed(tmp_path):
    root = layouts.coco(tmp_path / "set")
    with pytest.raises(DataError, match=r"--surgery is missing: .* must never be in two splits"):
        coco.plan(root, coco.Options())
    for regex, says in (
        ("(", "is not an expression"),
        ("a", "has 0 groups"),
        ("(a)(b)", "2 groups"),
    ):
        with pytest.raises(DataError, match=says):
            coco.plan(root, coco.Options(regex))
    problems = coco.plan(root, coco.Options("^([0-9]+)/")).problems
    assert problems == ["case b/x.png: --surgery ^([0-9]+)/ does not match"]
    problems = coco.plan(root, coco.Options("^(.*)$")).problems
    assert all("is no name of a folder" in problem for problem in problems)
    twice = layouts.coco(tmp_path / "twice", names=["1/a.png", "01/b.png"])
    assert "count as the same surgery 1" in coco_plan(twice).problems[0]


def test_a_frame_is_found_in_one_place_or_not_at_all(tmp_path):
    root = layouts.coco(tmp_path / "set")
    frame = root / "images" / "default" / "01" / "frame_1.png"
    (root / "01").mkdir()
    shutil.copy(frame, root / "01")
    assert "is there twice" in coco_plan(root).problems[0]
    shutil.rmtree(root / "01")
    frame.rename(tmp_path / "frame_1.png")
    (problem,) = coco_plan(root).problems
    assert "01/frame_1.png is missing; looked in" in problem and "--images FOLDER" in problem
    shutil.move(root / "images" / "default", tmp_path / "elsewhere")
    (tmp_path / "frame_1.png").rename(tmp_path / "elsewhere" / "01" / "frame_1.png")
    assert coco_plan(root, images=tmp_path / "elsewhere").problems == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"images": [], "annotations": []}', "has no list categories"),
    ],
)
def test_a_file_that_is_no_coco(tmp_path, text, says):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=says):
        coco_plan(tmp_path)


def test_names_that_cannot_be_folders_and_categories_without_an_anatomy(tmp_path):
    root = layouts.coco(tmp_path / "set", anatomies=["a/b", "background", "multilabel"])
    text = "\n".join(coco_plan(root).problems)
    assert "'a/b' cannot be an anatomy's folder" in text and "'multilabel' cannot" in text
    root = layouts.coco(tmp_path / "two", anatomies=["liver", "Background", "ignore"])
    plan = coco_plan(root, Labels.MASKS)
    assert plan.anatomies == ["liver"]
    assert "category ignore" in problems_of(plan, tmp_path / "out")[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_as_large_as_its_labels(tmp_path, orientation):
    root = layouts.coco(tmp_path / "set", names=["01/a.jpg"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = layouts.SIZE if orientation < 5 else layouts.SIZE[::-1]
    path = root / "images" / "default" / "01" / "a.jpg"
    Image.fromarray(layouts.frame(size=size)).save(path, exif=exif)
    plan = coco_plan(root)
    if 1 < orientation < 5:  # its labels have the size of either way
        (problem,) = problems_of(plan, tmp_path / "out")
        assert f"has the EXIF orientation {orientation}, and its labels may belong" in problem
    else:
        assert plan.frames[0].read().image.shape == (*layouts.SIZE, 3)


# nnU-Net


def test_nnunet_becomes_maps(tmp_path):
    root = layouts.nnunet(tmp_path / "set")
    plan = nnunet.plan(root, nnunet.Options("^([0-9]+)__"))
    out = tmp_path / "out"
    write(plan, out)
    assert (out / "anatomies.txt").read_text().split() == list(layouts.ORGANS)
    assert rows_of(out)["07/image00.png"] == "imagesTr/07__b_0000.png"
    original = layouts.label_map(root / "labelsTr" / "01__a_2.png")
    assert (layouts.label_map(out / "01" / "label01.png") == original).all()


def test_an_ignore_label_never_becomes_background(tmp_path):
    root = layouts.nnunet(tmp_path / "set", ignore=True)
    plan = nnunet.plan(root, nnunet.Options("^([0-9]+)__", Labels.MASKS))
    problems = problems_of(plan, tmp_path / "out")
    assert len(problems) == 3 and "value 4, nnU-Net's ignore label" in problems[0]
    assert "--as maps keeps them" in problems[0]
    write(nnunet.plan(root, nnunet.Options("^([0-9]+)__")), tmp_path / "out")
    values = layouts.label_map(tmp_path / "out" / "01" / "label00.png")
    assert (values[-1:, -4:] == 255).all() and (values == 255).sum() == 4


def test_palette_files_are_read_by_their_indices(tmp_path):
    root = layouts.nnunet(tmp_path / "set", cases=["01__a"])
    label = root / "labelsTr" / "01__a.png"
    values = layouts.label_map(label)
    picture = Image.fromarray(values)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(label)
    assert Image.open(label).mode == "P"
    frames = nnunet.plan(root, nnunet.Options("^([0-9]+)__")).frames
    masks = frames[0].read().masks
    assert all((masks[name] == (values == i + 1)).all() for i, name in enumerate(layouts.ORGANS))


def label_problems(tmp_path, save):
    """What is said of one label file that is saved by a function."""
    root = layouts.nnunet(tmp_path / "set", cases=["01__a"])
    save(root / "labelsTr" / "01__a.png")
    plan = nnunet.plan(root, nnunet.Options("^([0-9]+)__"))
    return "\n".join(problems_of(plan, tmp_path / "out"))


def test_labels_that_are_no_labels(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    values = Image.fromarray(np.zeros(layouts.SIZE, np.uint8))
    saves = {
        "holds the value 9": lambda path: write_png(path, np.full(layouts.SIZE, 9, np.uint8)),
        "is a colour picture": lambda path: write_png(path, layouts.frame()),
        "partly transparent": lambda path: Image.new("LA", layouts.SIZE[::-1], (1, 9)).save(path),
        "EXIF orientation 6": lambda path: values.save(path, exif=turned),
        "its content is not a PNG": lambda path: path.write_text("none"),
        "different sizes": lambda path: write_png(path, np.zeros((5, 5), np.uint8)),
    }
    for number, (says, save) in enumerate(saves.items()):
        assert says in label_problems(tmp_path / str(number), save)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"file_ending": ".nii.gz"}, "only 2-D PNG files are read"),
        ({"labels": {"0": "background", "1": "liver"}}, "nnUNetv2_convert_old_nnUNet_dataset"),
        ({"labels": {"background": 0, "all": [1, 2]}}, "all: regions of several values"),
        ({"labels": {"liver": 0}}, "background must be 0"),
        ({"labels": None}, "has no labels"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "two names have the same value"),
    ],
)
def test_another_kind_of_nnunet_data_set_is_refused(tmp_path, change, says):
    root = layouts.nnunet(tmp_path / "set")
    value = json.loads((root / "dataset.json").read_text()) | change
    (root / "dataset.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=says):
        nnunet.plan(root, nnunet.Options("^([0-9]+)__"))


def test_files_of_nnunet_that_have_no_partner(tmp_path):
    root = layouts.nnunet(tmp_path / "set")
    (root / "labelsTr" / "07__b.png").unlink()
    (root / "imagesTr" / "01__a_1_0001.png").write_bytes(b"")
    (root / "imagesTr" / "01__a_2_0000.png").unlink()
    text = "\n".join(nnunet.plan(root, nnunet.Options("^([0-9]+)__")).problems)
    assert "07__b_0000.png: its labels labelsTr/07__b.png are missing" in text
    assert "is another channel of a case" in text
    assert "01__a_2.png: its image imagesTr/01__a_2_0000.png is missing" in text
    assert "numTraining is 3, and labelsTr has 1 cases" in text


# Video


def film():
    """Ten frames each of two scenes, black, a grey room, and the first scene again."""
    scenes = [cv2.blur(layouts.frame(seed, (48, 64)), (9, 9)) for seed in (1, 2)]
    scenes[1][:, 32:] //= 3
    black = np.zeros((48, 64, 3), np.uint8)
    room = np.full((48, 64, 3), 150, np.uint8)
    return [each for each in (*scenes, black, room, scenes[0]) for _ in range(10)]


def test_a_video_gives_frames_that_differ_and_show_tissue(tmp_path):
    path = layouts.video(tmp_path / "op" / "case7_part1.avi", film())
    options = video.Options("(case[0-9]+)", rate=2)
    plan = video.plan(path.parent, options)
    assert plan.notes == [
        "case7_part1.avi: 3 frames are kept; left out: 3 near-duplicates, 2 black, 2 outside of "
        "the body, 0 broken"
    ]
    out = tmp_path / "out"
    files = write(plan, out)
    assert [file for file in files if file.endswith(".png")] == [
        f"case7/case7_part1_{number:06d}.png" for number in (0, 10, 40)
    ]
    assert rows_of(out)["case7/case7_part1_000010.png"].endswith("at 1.000 s, frame 10")
    sources, problems = scan_unlabelled(out, Splits(val=[], test=[]))
    assert problems == [] and len(sources) == 3
    difference = read_frame(sources[0].image).astype(int) - film()[0]
    assert np.abs(difference).mean() < 12  # JPEG
    everything = video.Options("(case[0-9]+)", rate=2, least_change=0, least_red=0)
    assert len(video.plan(path, everything).frames) == 8  # but for black ones


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_second_run_of_a_video_writes_what_is_missing(tmp_path, suffix):
    path = layouts.video(tmp_path / f"case7{suffix}", film())
    out = tmp_path / "out"
    options = video.Options("(case[0-9]+)", rate=10, least_change=0)
    files = write(video.plan(path, options), out)
    assert len(files) == 30 + 2
    for number, frame in enumerate(film()):
        name = f"case7/case7_{number:06d}.png"
        assert (name in files) == (number < 20 or number >= 40)
        if name in files:
            assert np.abs(read_frame(out / name).astype(int) - frame).mean() < 12
    before = {name: (out / name).read_bytes() for name in files}
    (out / files[-2]).unlink()
    assert write(video.plan(path, options), out) == files
    assert {name: (out / name).read_bytes() for name in files} == before


def test_a_video_that_ends_early_is_told(tmp_path):
    path = layouts.video(tmp_path / "op1.avi", [layouts.frame(seed) for seed in range(40)])
    whole = video.plan(path, video.Options("(op1)", rate=5))
    assert "ends early" not in whole.notes[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (note,) = video.plan(path, video.Options("(op1)", rate=5)).notes
    assert "it ends early: the file tells of 40 frames" in note


def test_times_that_begin_anew_lose_no_frame():
    """As in concatenated videos; frames without a time go by their numbers."""
    clock = video._Clock(Fraction(1), Fraction(2))
    times = [Fraction(each, 2) for each in (0, 1, 2, 3, 0, 1, 2)]
    due = [clock.is_due(number, time) for number, time in enumerate(times)]
    assert due == [True, False, True, False, True, False, True]
    clock = video._Clock(Fraction(1), Fraction(2))
    assert [clock.is_due(number, None) for number in range(5)] == [True, False] * 2 + [True]


def test_a_video_needs_its_surgery_and_frames(tmp_path):
    with pytest.raises(DataError, match="holds no video"):
        video.plan(tmp_path, video.Options("(a)"))
    path = layouts.video(tmp_path / "b.avi", film()[:2])
    with pytest.raises(DataError, match="--surgery is missing"):
        video.plan(path, video.Options())
    (tmp_path / "c.mp4").write_bytes(b"no video")
    plan = video.plan(tmp_path, video.Options("([bc])"))
    assert len(plan.problems) == 1 and "cannot be opened as a video" in plan.problems[0]


@pytest.mark.skipif(not (REAL_DATA / "cholecseg8k").is_dir(), reason="no real data here")
def test_real_frames_count_as_inside_of_the_body():
    paths = sorted((REAL_DATA / "cholecseg8k" / "labelmap").glob("*/image*.png"))
    shares = [
        video.red_share(cv2.resize(read_frame(path), video.THUMBNAIL, interpolation=cv2.INTER_AREA))
        for path in paths
    ]
    assert len(shares) == 41 and min(shares) > video.Options().least_red


# Writing


def test_a_second_run_keeps_what_is_there(tmp_path):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    files = write(coco_plan(root), out)
    (out / "01" / "label00.png").unlink()
    kept = (out / "01" / "image01.png").stat().st_mtime_ns
    assert write(coco_plan(root), out) == files
    assert (out / "01" / "image01.png").stat().st_mtime_ns == kept


def test_frames_that_came_to_a_set_are_added(tmp_path):
    root = layouts.coco(tmp_path / "set", names=["01/a.png"])
    out = tmp_path / "out"
    write(coco_plan(root), out)
    layouts.coco(root, names=["01/a.png", "02/b.png"])
    assert "02/label00.png" in write(coco_plan(root), out)


def test_a_frame_in_the_middle_of_a_surgery_renames_no_other(tmp_path):
    root = layouts.coco(tmp_path / "set", names=["01/a.png", "01/c.png"])
    out = tmp_path / "out"
    write(coco_plan(root), out)
    layouts.coco(root, names=["01/a.png", "01/c.png", "01/b.png"])
    write(coco_plan(root), out)
    assert rows_of(out) == {
        "01/image00.png": "01/a.png",
        "01/image01.png": "01/c.png",
        "01/image02.png": "01/b.png",
    }
    assert (read_frame(out / "01" / "image02.png") == layouts.frame(2)).all()
    write(coco_plan(root), out, force=True)
    assert rows_of(out)["01/image01.png"] == "01/b.png"


def test_pictures_that_no_coco_file_names_are_told(tmp_path):
    root = layouts.coco(tmp_path / "set")
    write_png(root / "images" / "default" / "01" / "new.png", layouts.frame())
    (note,) = coco_plan(root).notes
    assert note == f"in no COCO file, and left out: {root}/images/default/01/new.png"


def test_such_a_picture_may_have_a_known_name_or_be_elsewhere(tmp_path):
    root = layouts.coco(tmp_path / "set", names=["01/a.png"])
    images = root / "images" / "default"
    write_png(images / "03" / "a.png", layouts.frame())
    assert coco_plan(root).notes == [f"in no COCO file, and left out: {images}/03/a.png"]
    (moved,) = coco_plan(layouts.coco_file(root), images=images).notes
    assert moved == f"in no COCO file, and left out: {images}/03/a.png"
    endo = layouts.endoscapes(tmp_path / "endo")
    shutil.copy(endo / "train_seg" / "4_21725.jpg", endo / "train_seg" / "4_1.jpg")
    notes = endoscapes.plan(endo, endoscapes.Options(EndoscapesMasks.COCO)).notes
    assert f"in no COCO file, and left out: {endo}/train_seg/4_1.jpg" in notes


def test_another_layout_in_the_same_folder_is_told(tmp_path):
    root = layouts.cholecseg8k(tmp_path / "set", frames=1)
    write(cholecseg8k.plan(root, cholecseg8k.Options()), tmp_path / "out")
    with pytest.raises(MtkdError, match="would now be written elsewhere, since options"):
        write(cholecseg8k.plan(root, cholecseg8k.Options(labels=Labels.MASKS)), tmp_path / "out")


def test_corrected_labels_are_told_from_those_before(tmp_path):
    """As after a second export from CVAT."""
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    write(coco_plan(root), out)
    layouts.change_coco(root, lambda value: value["annotations"].pop(0))
    with pytest.raises(MtkdError, match=r"01/image00.png from 01/frame_1.png changed.*--force"):
        write(coco_plan(root), out)
    write(coco_plan(root), out, force=True)
    assert 1 not in layouts.label_map(out / "01" / "label00.png")


def test_force_removes_frames_that_are_no_longer_there(tmp_path):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    write(coco_plan(root), out)
    layouts.coco(root, names=["01/frame_1.png"])
    with pytest.raises(MtkdError, match="is no longer there"):
        write(coco_plan(root), out)
    assert [file for file in write(coco_plan(root), out, force=True) if file.endswith("png")] == [
        "01/image00.png", "01/label00.png",
    ]  # fmt: skip


@pytest.mark.parametrize("force", [False, True])
def test_nothing_outside_of_the_folder_is_touched(tmp_path, force):
    """Neither behind a link in the place of a surgery nor where an edited sources.csv points to."""
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    victim = tmp_path / "victim" / "image00.png"
    victim.parent.mkdir()
    victim.write_bytes(b"mine")
    out.mkdir()
    (out / "01").symlink_to(victim.parent)
    (out / "sources.csv").write_text("file,original,digest\n")
    with pytest.raises(MtkdError, match="out/01: leads out of the folder"):
        write(coco_plan(root), out, force=force)
    assert victim.read_bytes() == b"mine"
    assert not (out / "SOURCE.md").exists()


@pytest.mark.parametrize("elsewhere", ["../victim/image00.png", "{victim}"])
def test_force_removes_nothing_that_an_edited_list_names_elsewhere(tmp_path, elsewhere):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    write(coco_plan(root), out)
    victim = tmp_path / "victim" / "image00.png"
    victim.parent.mkdir()
    victim.write_bytes(b"mine")
    with (out / "sources.csv").open("a") as file:
        file.write(f"{elsewhere.format(victim=victim)},x.png,0000\n")
    with pytest.raises(MtkdError, match="victim: leads out of the folder"):
        write(coco_plan(root), out, force=True)
    assert victim.read_bytes() == b"mine"


def test_a_forced_run_that_is_stopped_keeps_nothing_of_the_run_before(tmp_path, monkeypatch):
    """Else its frames would count as those of the new run."""
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    write(coco_plan(root), out)
    layouts.change_coco(root, lambda value: value["annotations"].clear())
    monkeypatch.setattr("pipeline.convert.writing.write_png", stop)
    with pytest.raises(KeyboardInterrupt):
        write(coco_plan(root), out, force=True)
    monkeypatch.undo()
    write(coco_plan(root), out)
    assert not any(layouts.label_map(path).any() for path in out.glob("*/label*.png"))


def test_force_replaces_one_layout_by_another(tmp_path):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    masks = write(coco_plan(root, Labels.MASKS), out)
    (out / "notes.txt").write_text("of the user")
    maps = write(coco_plan(root), out, force=True)
    assert "anatomies.txt" in maps and "notes.txt" in maps
    assert not (out / "colon").exists()
    (out / "notes.txt").unlink()
    assert write(coco_plan(root, Labels.MASKS), out, force=True) == masks


def test_files_of_others_are_not_overwritten(tmp_path):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    write_png(out / "01" / "image00.png", layouts.frame())
    with pytest.raises(MtkdError, match=r"holds files and no sources\.csv"):
        write(coco_plan(root), out)
    (out / "sources.csv").write_text("a,b\n")
    with pytest.raises(MtkdError, match="is not of a conversion"):
        write(coco_plan(root), out)
    (out / "sources.csv").write_text("file,original,digest\n")
    with pytest.raises(MtkdError, match=r"01/image00\.png: would be overwritten"):
        write(coco_plan(root), out)


def stop(path, content):
    raise KeyboardInterrupt


def test_a_stopped_run_leaves_no_half_file(tmp_path, monkeypatch):
    root = layouts.coco(tmp_path / "set")
    out = tmp_path / "out"
    monkeypatch.setattr("pipeline.png_files.write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        write(coco_plan(root), out)
    monkeypatch.undo()
    assert (out / "SOURCE.md").is_file() and (out / "sources.csv").is_file()
    assert len([file for file in write(coco_plan(root), out) if file.endswith("png")]) == 6


def test_a_source_that_changes_while_it_is_read_is_reported(tmp_path):
    root = layouts.nnunet(tmp_path / "set", cases=["01__a"])
    plan = nnunet.plan(root, nnunet.Options("^([0-9]+)__"))

    def change(done, total):
        write_png(root / "labelsTr" / "01__a.png", np.zeros(layouts.SIZE, np.uint8))

    with pytest.raises(MtkdError, match="changed while it was converted"):
        write(plan, tmp_path / "out", check_step=change)


def test_every_format_says_what_it_expects_and_what_was_verified():
    for name, each in FORMATS.items():
        assert each.name == name and each.layout and each.documented and each.packages
        assert "Verified on" in each.help
