"""Stage ``cache_logits``: one teacher answers on every training frame of all anatomies; its logits are stored."""

from collections.abc import Iterator
from itertools import chain

import cache
from pipeline.checkpoint import load_checkpoint
from pipeline.errors import MtkdError
from pipeline.files import write_json
from pipeline.inference import Question, answers, clean_questions, view_questions
from pipeline.machine import Machine
from pipeline.models.network import Network
from pipeline.prepared import Frame, frames_digest
from pipeline.settings import Params
from stages.console import progress, say
from stages.layout import METRICS, SCRATCH, frames_of, store, teacher_checkpoint
from stages.params import load_params
from stages.store_identity import expected_parts


def run(anatomies: list[str], machine: Machine) -> None:
    """Write the stores of some anatomies' teachers, of all if none is named."""
    params = load_params()
    unknown = sorted(set(anatomies) - set(params.data.anatomies))
    if unknown:
        raise MtkdError(f"not in data.anatomies: {', '.join(unknown)}; there: {', '.join(params.data.anatomies)}")
    frames = frames_of("train", params.data.anatomies)
    digest = frames_digest(frames)
    for anatomy in anatomies or params.data.anatomies:
        _write_store(anatomy, frames, digest, params, machine)


def _write_store(anatomy: str, frames: list[Frame], digest: str, params: Params, machine: Machine) -> None:
    checkpoint, settings = teacher_checkpoint(anatomy), params.cache
    teacher, card = load_checkpoint(checkpoint, f"train_teacher@{anatomy}")
    if card.image_size != params.data.image_size:
        raise MtkdError(f"{checkpoint} was trained at {card.image_size}: run `dvc repro train_teacher@{anatomy}`")
    questions = _questions(frames, params)
    writer = cache.create_store(
        SCRATCH / store(anatomy),
        anatomy=anatomy,
        frames=[frame.id for frame in frames],
        grid=_grid(teacher, params),
        image_size=params.data.image_size,
        identity_parts=expected_parts(params, digest, checkpoint),
        views=_view_descriptions(params),
        shard_frames=settings.shard_frames,
    )
    with writer, progress(f"{anatomy}: frames asked") as bar:
        done = writer.next
        batches = _batches(len(frames), len(questions), settings.shard_frames, settings.batch_size, done)
        for logits, pixels in answers(teacher, questions, batches, settings.precision, machine):
            writer.append(logits[:, 0], pixels)
            done += len(pixels)
            bar(done, len(questions))
        writer.finish(store(anatomy))
    stats = cache.stats(store(anatomy))
    write_json(METRICS / "cache" / f"{anatomy}.json", stats)
    say(f"{anatomy}: {len(questions)} answers -> {store(anatomy)}, {stats['bytes'] / 2**20:.1f} MiB")


def _questions(frames: list[Frame], params: Params) -> list[Question]:
    """All frames of view 0, then all of view 1, ...; without views, the clean frames."""
    if not params.cache.views:
        return clean_questions(frames)
    views = range(params.cache.views)
    return list(chain(*(view_questions(frames, params.cache.seed, v, params.data.image_size) for v in views)))


def _view_descriptions(params: Params) -> list[dict[str, object]]:
    if not params.cache.views:
        return [{"view": 0, "clean": True}]
    return [{"view": v, "clean": False, "seed": params.cache.seed} for v in range(params.cache.views)]


def _grid(teacher: Network, params: Params) -> tuple[int, int]:
    height, width = (-(-n // teacher.output_stride) for n in params.data.image_size)
    return height, width


def _batches(frames: int, total: int, shard: int, batch: int, done: int) -> list[range]:
    """Batches from position ``done`` on; none crosses a shard or a view, so a resumed run asks the same batches."""

    def pieces(start: int, stop: int, size: int) -> Iterator[range]:
        return (range(i, min(i + size, stop)) for i in range(start, stop, size))

    shards = chain(*(pieces(view, view + frames, shard) for view in range(0, total, frames)))
    return list(chain(*(pieces(s.start, s.stop, batch) for s in shards if s.start >= done)))
