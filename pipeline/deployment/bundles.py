"""An exported ONNX file as other platforms take it: a MONAI bundle, a Triton model repository.

Both are a few text files beside the ONNX file. MONAI's specification:
https://docs.monai.io/en/stable/bundle/mb_specification.html; Triton's: "Model Configuration" and
"Model Repository" of its user guide.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime
import PIL
import torch

from pipeline.deployment.export import ExportCard, open_onnx
from pipeline.files import write_json

Bundle = Literal["monai", "triton"]
BUNDLES: tuple[Bundle, ...] = get_args(Bundle)
Shape = Sequence[int]


def write_bundle(kind: Bundle, onnx_path: Path, card: ExportCard, folder: Path) -> Path:
    """Write a bundle.

    Args:
        kind: for whom.
        onnx_path: what :func:`pipeline.deployment.export.write_onnx` wrote.
        card: the one in it.
        folder: where; it gets the name ``<stem>_<kind>`` there.

    Returns:
        The bundle.
    """
    writers: dict[Bundle, Callable[[Path, ExportCard, Path], None]] = {
        "monai": _write_monai,
        "triton": _write_triton,
    }
    bundle = folder / f"{onnx_path.stem}_{kind}"
    bundle.mkdir(parents=True)
    writers[kind](onnx_path, card, bundle)
    return bundle


def _shapes(onnx_path: Path) -> tuple[list[int], list[int]]:
    """Of what goes in and what comes out; the runtime infers what the file leaves open."""
    session = open_onnx(onnx_path)
    return session.get_inputs()[0].shape, session.get_outputs()[0].shape


# --- MONAI ---


def _write_monai(onnx_path: Path, card: ExportCard, bundle: Path) -> None:
    """``configs/metadata.json``, ``configs/inference.json``, ``models/model.onnx``, ``docs``."""
    for name in ("configs", "models", "docs"):
        (bundle / name).mkdir()
    shutil.copyfile(onnx_path, bundle / "models" / "model.onnx")
    write_json(bundle / "configs" / "metadata.json", _metadata(onnx_path, card))
    write_json(bundle / "configs" / "inference.json", _inference(card))
    (bundle / "docs" / "README.md").write_text(_readme(onnx_path.stem, card))


def _metadata(onnx_path: Path, card: ExportCard) -> dict[str, Any]:
    from monai import __version__ as monai_version

    given, gives = _shapes(onnx_path)
    is_uint8 = card.layout != "nhwc-float32"
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/"
        "0.8.1/meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by mtkd"},
        "monai_version": monai_version,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {
            "onnxruntime": onnxruntime.__version__,
            "pillow": PIL.__version__,
            "fire": "0.7.0",  # MONAI's command line
        },
        "name": onnx_path.stem,
        "task": "segmentation of anatomy in laparoscopic frames",
        "description": f"{card.architecture}, {len(card.anatomies)} anatomies; no medical device",
        "authors": "see the checkpoint's owner",
        "copyright": "see the checkpoint's owner",
        "network_data_format": {
            "inputs": {
                "frame": {
                    "type": "image",
                    "format": "RGB",
                    "num_channels": 3,
                    "spatial_shape": list(card.frame_size),
                    "dtype": "uint8" if is_uint8 else "float32",
                    "value_range": [0, 255],
                    "is_patch_data": False,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                    "layout": card.layout,
                    "shape": given,
                }
            },
            "outputs": {card.gives: _output(card, gives)},
        },
    }


def _output(card: ExportCard, shape: Shape) -> dict[str, Any]:
    n = len(card.anatomies)
    channels, values, first = {
        "masks": (n, [0, 1], list(card.anatomies)),
        "labels": (1, [0, n], ["0 = none, i = the i-th anatomy"]),
        "margins": (n + 1, [], ["none", *card.anatomies]),
    }[card.gives]
    return {
        "type": "image",
        "format": "segmentation",
        "num_channels": channels,
        "spatial_shape": list(shape[-2:]),
        "dtype": "float32" if card.gives == "margins" else "uint8",
        "value_range": values,
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(first)},
        "shape": list(shape),
    }


def _inference(card: ExportCard) -> dict[str, Any]:
    """A configuration that MONAI's own reader runs: frames of a folder to arrays beside them."""
    channels_first = ".transpose(2, 0, 1)" if card.layout == "nchw" else ""
    dtype = "np.float32" if card.layout == "nhwc-float32" else "np.uint8"
    height, width = card.frame_size
    return {
        "imports": [
            "$import numpy as np",
            "$import onnxruntime",
            "$from pathlib import Path",
            "$from PIL import Image",
        ],
        "bundle_root": ".",
        "frames": "$sorted(Path(@bundle_root, 'frames').glob('*.png'))",
        "output_dir": "$str(Path(@bundle_root, 'eval'))",
        "session": {
            "_target_": "onnxruntime.InferenceSession",
            "path_or_bytes": "$str(Path(@bundle_root, 'models', 'model.onnx'))",
            "providers": ["CPUExecutionProvider"],
        },
        "load": f"$lambda path: np.asarray(Image.open(path).convert('RGB').resize(({width}, "
        f"{height}), Image.Resampling.BILINEAR), dtype={dtype}){channels_first}[None]",
        "predict": "$lambda path: @session.run(None, {'frame': np.ascontiguousarray("
        "@load(path))})[0]",
        "save": "$lambda path: np.save(Path(@output_dir, path.stem), @predict(path))",
        "run": ["$Path(@output_dir).mkdir(exist_ok=True)", "$[@save(path) for path in @frames]"],
    }


def _readme(name: str, card: ExportCard) -> str:
    lines = [
        f"# {name}",
        "",
        f"{card.architecture}, exported by mtkd. No medical device.",
        "",
        "    pip install 'monai[fire,pillow]' onnxruntime",
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root .",
        "",
        f"reads `frames/*.png` and writes `eval/*.npy`, {card.gives} of",
        "",
        *(f"{i}. {anatomy}" for i, anatomy in enumerate(card.anatomies, start=1)),
    ]
    return "\n".join(lines) + "\n"


# --- Triton ---


def _write_triton(onnx_path: Path, card: ExportCard, bundle: Path) -> None:
    """``<name>/config.pbtxt``, ``<name>/labels.txt`` and ``<name>/1/model.onnx``."""
    model = bundle / onnx_path.stem
    (model / "1").mkdir(parents=True)
    shutil.copyfile(onnx_path, model / "1" / "model.onnx")
    first = ["none"] if card.gives != "masks" else []
    (model / "labels.txt").write_text("\n".join([*first, *card.anatomies]) + "\n")
    given, gives = _shapes(onnx_path)
    input_type = "TYPE_FP32" if card.layout == "nhwc-float32" else "TYPE_UINT8"
    output_type = "TYPE_FP32" if card.gives == "margins" else "TYPE_UINT8"
    (model / "config.pbtxt").write_text(
        f"name: {json.dumps(onnx_path.stem)}\n"
        'platform: "onnxruntime_onnx"\n'
        "max_batch_size: 0\n"
        f'input [{{ name: "frame" data_type: {input_type} dims: {given} }}]\n'
        f'output [{{ name: "{card.gives}" data_type: {output_type} dims: {gives} '
        'label_filename: "labels.txt" }]\n'
    )
