"""The figures of a measurement, as tables and JSON files give them."""

from pipeline.timing.interleaved import Timing

FIGURES = ("milliseconds", "p95_milliseconds", "first_milliseconds", "fps", "peak_mib")


def figures(timing: Timing) -> dict[str, float]:
    """What one frame takes.

    Returns:
        By the names of :data:`FIGURES`: the median call, the 95th percentile and the first call in
        milliseconds; frames per second; MiB of memory at most.
    """
    values = (
        round(1000 * timing.median, 2),
        round(1000 * timing.p95, 2),
        round(1000 * timing.first, 2),
        round(1 / timing.median, 2),
        round(timing.peak / 2**20, 1),
    )
    return dict(zip(FIGURES, values, strict=True))
