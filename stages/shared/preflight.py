"""What later stages need on this machine, tried before the first training.

It may be days until they run.
"""

import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

import cache
from pipeline.errors import MtkdError
from pipeline.models import Network, create_model
from pipeline.settings import Params
from stages.shared.console import say
from stages.shared.project import Project

if TYPE_CHECKING:
    from pipeline.deployment.export import ExportCard
    from pipeline.deployment.onnx_graph import Exporter
    from pipeline.deployment.segmenter import Segmenter

# The stages to come, and the libraries that they import only when they need them.
NEEDED = (
    "stages.cache_logits", "stages.train_student", "stages.evaluate", "stages.benchmark",
    "stages.report",
    "monai.metrics", "scipy.stats", "albumentations",
)  # fmt: skip


def preflight(project: Project) -> None:
    """Import what later stages import, build and export the student, look at the disk.

    Once for the same libraries and settings. A student that `mtkd export` would refuse, and a disk
    that may be too small, are warnings.

    Raises:
        MtkdError: something cannot be imported, or the student cannot be built; all together.
    """
    params = project.params
    # An empty file for each hash of what passed: teachers side by side write it at the same time.
    passed = project.scratch / f"preflight-{_digest(params)[:16]}"
    if passed.is_file():
        return
    problems = list(_imports())
    student = _student(params, problems)
    if problems:
        raise MtkdError("\n  ".join(["what later stages need is not in order:", *problems]))
    for warning in (*_export(params, student), *_room(project)):
        say(f"warning: {warning}")
    passed.parent.mkdir(parents=True, exist_ok=True)
    passed.touch()


def _digest(params: Params) -> str:
    # Their names hold the versions; reading each one's metadata would take longer than all else
    # here.
    paths = chain(*(Path(folder).glob("*.dist-info") for folder in sys.path))
    installed = sorted(path.name for path in paths)
    settings = (
        params.student,
        params.teacher.arch,
        params.data,
        params.cache.views,
        params.benchmark.image_size,
    )
    return sha256(repr((sys.version, installed, settings)).encode()).hexdigest()


def _imports() -> Iterator[str]:
    for module in NEEDED:
        try:
            import_module(module)
        except Exception as error:  # whatever a broken library raises
            reason = f"{type(error).__name__}: {error}"
            yield f"{module} cannot be imported ({reason}): install its package again"


def _student(params: Params, problems: list[str]) -> Network | None:
    """The student with its initial weights; None if these are still to be trained."""
    settings = params.student
    start = Path(settings.pretrained)
    if start.suffix == ".safetensors" and not start.exists():
        return None
    try:
        return create_model(
            settings.arch,
            len(params.data.anatomies),
            settings.pretrained,
            shared=settings.shared,
        ).eval()
    except MtkdError as error:
        problems.append(f"student: {error}")
        return None


def _export(params: Params, student: Network | None) -> list[str]:
    """Whether the student's graph gives its masks, where ONNX and its runtime are installed."""
    if student is None or not all(find_spec(name) for name in ("onnx", "onnxruntime")):
        return []
    from pipeline.deployment.export import ExportCard
    from pipeline.deployment.onnx_graph import exporters
    from pipeline.deployment.segmenter import Segmenter

    sizes = params.benchmark.image_size, params.data.image_size
    segmenter = Segmenter(student, *sizes)
    label = ExportCard(
        params.student.arch, tuple(params.data.anatomies), *sizes, student.mean, student.std, ""
    )
    problem = None
    for exporter in reversed(exporters()):  # the last one takes the least time
        problem = _problem_of(segmenter, label, exporter)
        if problem is None:
            return []
    return [f"the student cannot be exported{problem}"]


def _problem_of(segmenter: "Segmenter", label: "ExportCard", exporter: "Exporter") -> str | None:
    """Why an ONNX file cannot be delivered; None if it can be."""
    from pipeline.deployment.export import disagreement, load_exported, write_onnx

    size = (*label.frame_size, 3)
    frame = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "student.onnx"
            write_onnx(segmenter, label, file, exporter)
            wrong = disagreement(segmenter, load_exported(file)[0], [frame])
    except Exception as error:  # whatever an exporter raises
        return f" as ONNX ({type(error).__name__}: {error})"
    return f": its ONNX file differs from it in {wrong} pixels of a frame" if wrong else None


def _room(project: Project) -> list[str]:
    """Whether the stores will find room before they are compressed."""
    from stages.stores.plan import require_space

    params = project.params
    stride = create_model(params.teacher.arch, 1).output_stride
    height, width = (-(-n // stride) for n in params.data.image_size)
    frames = len(project.distillation_frames())
    anatomies = len(params.data.anatomies)
    try:
        require_space(
            project, anatomies * cache.estimate(frames, max(1, params.cache.views), (height, width))
        )
    except MtkdError as error:
        return [str(error)]
    return []
