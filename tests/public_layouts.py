"""Tiny data sets in public layouts, as their documentation describes them."""

import csv
import io
import json
from fractions import Fraction

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers import disc, write_png
from PIL import Image
from pycocotools import mask as coco_masks

SIZE = (40, 56)


def frame(seed=0, size=SIZE):
    """Reddish noise."""
    rng = np.random.default_rng(seed)
    return (rng.integers(40, 120, (*size, 3)) + np.array([90, 0, 0])).astype(np.uint8)


def discs(seed, count, size=SIZE):
    """Masks (count, H, W) without common pixels."""
    rng = np.random.default_rng(seed)
    free = np.ones(size, bool)
    masks = []
    for _ in range(count):
        centre = rng.integers([6, 6], [size[0] - 6, size[1] - 6])
        masks.append(disc(size, centre, int(rng.integers(3, 8))) & free)
        free &= ~masks[-1]
    return np.stack(masks)


# CholecSeg8k

LIVER, BLACK, BORDER = 21, 50, 255
LIVER_COLOUR, BLACK_COLOUR = (255, 114, 114), (127, 127, 127)


def cholecseg8k(root, videos=("video01", "video12"), frames=2):
    """Liver on black background; watershed masks have three equal channels."""
    for v, video in enumerate(videos):
        for number in range(80, 80 + frames):
            place = root / video / f"{video}_00080" / f"frame_{number}_endo"
            liver = discs(10 * v + number, 1)[0]
            write_cholec_frame(place, frame(10 * v + number), liver)
    return root


def write_cholec_frame(place, pixels, liver):
    values = np.where(liver, LIVER, BLACK).astype(np.uint8)
    colours = np.where(liver[..., None], LIVER_COLOUR, BLACK_COLOUR).astype(np.uint8)
    write_png(place.with_name(f"{place.name}.png"), pixels)
    write_png(place.with_name(f"{place.name}_watershed_mask.png"), np.stack([values] * 3, 2))
    write_png(place.with_name(f"{place.name}_color_mask.png"), colours)


# DSAD

ORGANS = ("colon", "liver", "stomach")
WEAK = (
    "abdominal_wall", "colon", "inferior_mesenteric_artery", "intestinal_veins", "liver",
    "pancreas", "small_intestine", "spleen", "stomach", "ureter", "uterus", "vesicular_glands",
)  # fmt: skip


def dsad_multilabel(root, surgeries=("02", "31"), frames=2):
    """A mask for each organ, but none of an organ that the weak labels deny."""
    for s, surgery in enumerate(surgeries):
        folder = root / "multilabel" / surgery
        rows = []
        for number in range(frames):
            masks = discs(100 * s + number, len(ORGANS))
            write_png(folder / f"image{number:02d}.png", frame(number))
            shown = ORGANS[: len(ORGANS) - number]  # the second frame shows no stomach
            for organ, mask in zip(ORGANS, masks, strict=True):
                if organ in shown:
                    write_png(folder / f"mask{number:02d}_{organ}.png", mask.astype(np.uint8) * 255)
            rows.append([f"image{number:02d}.png", *(int(name in shown) for name in WEAK)])
        with (folder / "weak_labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return root


def png_bytes(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def picture(pixels, path):
    return {"bytes": png_bytes(pixels), "path": path}


def grey(mask):
    return mask.astype(np.uint8) * 255


def dsad_parquet(root, config):
    """A Parquet file of a configuration, with two surgeries of two frames."""
    rows = []
    for surgery in (2, 31):
        for number in range(2):
            masks = dict(zip(ORGANS, discs(surgery + number, 3), strict=True))
            common = {
                "image": picture(frame(number), f"{surgery:02d}/image{number:02d}.png"),
                "surgery_id": surgery,
                "frame_number": number,
                "uterus": False,
                **{name: name != "stomach" or number == 0 for name in ORGANS},
            }
            if config.startswith("single"):
                rows += [common | single(organ, masks[organ], config) for organ in ORGANS[:2]]
            else:
                rows.append(common | several(masks, number, config))
    path = root / config / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def single(organ, mask, config):
    columns = {"organ": organ, "mask": picture(grey(mask), f"{organ}.png")}
    if config.endswith("rater"):
        for rater in (1, 2, 3):
            shifted = np.roll(mask, rater, 1)
            columns[f"mask_anno_{rater}"] = picture(grey(shifted), f"anno_{rater}.png")
    return columns


def several(masks, number, config):
    columns = {}
    for organ, mask in masks.items():
        shown = organ != "stomach" or number == 0
        columns[f"mask_{organ}"] = picture(grey(mask), f"{organ}.png") if shown else None
        if config.endswith("rater"):
            columns[f"mask_{organ}_rater_1"] = picture(grey(mask), f"{organ}_1.png")
    return columns


# Endoscapes

ENDOSCAPES = (
    "cystic_plate", "calot_triangle", "cystic_artery", "cystic_duct", "gallbladder", "tool",
)  # fmt: skip


def endoscapes(root, uncertain=False, exchanged=False):
    """Two frames for training and one for testing, as semantic masks and as COCO."""
    names = {"train_seg": ["4_21725", "4_22475"], "test_seg": ["165_22925"]}
    for split, stems in names.items():
        coco = {"images": [], "annotations": [], "categories": []}
        coco["categories"] = [{"id": i, "name": n} for i, n in enumerate(ENDOSCAPES, start=1)]
        for stem in stems:
            masks = discs(int(stem.split("_")[1]), len(ENDOSCAPES))
            values = np.zeros(SIZE, np.uint8)
            for value, mask in enumerate(masks, start=1):
                values[mask] = value
            if uncertain:
                values[:2, :3] = 255
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(3)).save(root / split / f"{stem}.jpg", quality=95)
            write_png(root / "semseg" / f"{stem}.png", np.stack([values] * 3, 2))
            add_to_coco(coco, f"{stem}.jpg", masks)
        for image in coco["images"]:
            if exchanged:
                image["width"], image["height"] = image["height"], image["width"]
        (root / split / "annotation_coco.json").write_text(json.dumps(coco))
    legend = "".join(f"{i} {name}\n" for i, name in enumerate(("background", *ENDOSCAPES)))
    (root / "seg_label_map.txt").write_text(legend)
    return root


# COCO


def run_lengths(mask, compressed=True):
    if not compressed:
        flat = mask.T.reshape(-1).astype(int)
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, flat.size]).tolist()
        return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def add_to_coco(value, name, masks, segmentation=run_lengths):
    """An image and an annotation for each mask that is not empty."""
    number = len(value["images"]) + 1
    height, width = masks.shape[1:]
    value["images"].append({"id": number, "file_name": name, "width": width, "height": height})
    for category, mask in enumerate(masks, start=1):
        if mask.any():
            value["annotations"].append(
                {
                    "id": len(value["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": segmentation(mask),
                    "iscrowd": 1,
                }
            )


def coco(root, names=("01/frame_1.png", "01/frame_10.png", "case b/x.png"), anatomies=ORGANS):
    """CVAT's layout: images/default and annotations/instances_default.json."""
    value = {"images": [], "annotations": [], "categories": [], "info": {"url": "https://x.org"}}
    value["categories"] = [{"id": i, "name": n} for i, n in enumerate(anatomies, start=1)]
    for seed, name in enumerate(names):
        write_png(root / "images" / "default" / name, frame(seed))
        add_to_coco(value, name, discs(seed, len(anatomies)))
    write_coco(root, value)
    return root


def coco_file(root):
    return root / "annotations" / "instances_default.json"


def write_coco(root, value):
    coco_file(root).parent.mkdir(parents=True, exist_ok=True)
    coco_file(root).write_text(json.dumps(value))


def change_coco(root, change):
    """Edit the JSON with a function."""
    value = json.loads(coco_file(root).read_text())
    change(value)
    write_coco(root, value)


# nnU-Net


def nnunet(root, ignore=False, cases=("01__a_1", "01__a_2", "07__b")):
    labels = {"background": 0} | {name: i for i, name in enumerate(ORGANS, start=1)}
    if ignore:
        labels["ignore"] = len(labels)
    for seed, case in enumerate(cases):
        values = np.zeros(SIZE, np.uint8)
        for value, mask in enumerate(discs(seed, len(ORGANS)), start=1):
            values[mask] = value
        if ignore:
            values[-1:, -4:] = labels["ignore"]
        write_png(root / "imagesTr" / f"{case}_0000.png", frame(seed))
        write_png(root / "labelsTr" / f"{case}.png", values)
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


# Video


def video(path, frames, rate=10):
    """Each frame a packet of its own in .avi; with frames that refer to later ones in .mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w") as container:
        codec = "mjpeg" if path.suffix == ".avi" else "libx264"
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def label_map(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
