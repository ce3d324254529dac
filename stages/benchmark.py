"""Stage ``benchmark``: what the teachers and the student cost, in parameters and in time for one frame."""

from dataclasses import replace
from typing import Any

from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.settings import Benchmark
from pipeline.timing.cost import multiply_adds, parameters
from pipeline.timing.host import machine_record
from pipeline.timing.interleaved import Timing, interleave
from pipeline.timing.latency import Candidate
from stages.shared.console import Step, progress, say
from stages.shared.project import Project

FIGURES = ("milliseconds", "p95_milliseconds", "first_milliseconds", "fps", "peak_mib")


def run(project: Project, machine: Machine) -> None:
    """Write metrics/benchmark.json (parameters) and results/benchmark.json (times, with the machine they hold for)."""
    params = project.params
    decoders = len(params.data.anatomies)
    forms = {
        "teachers": (params.teacher.arch, 1, decoders),  # N networks, one after another
        "student": (params.student.arch, decoders, 1),
    }
    counts, times = {}, {}
    for name, (arch, n, networks) in forms.items():
        count = networks * parameters(create_model(arch, n))
        counts[name] = {"parameters": count}
        with progress(f"{name}: frames measured") as bar:
            times[name] = {
                "arch": arch,
                **_measured(arch, n, networks, params.benchmark, machine, bar),
            }
        say(
            f"{name}: {count / 1e6:.2f} M parameters, {times[name]['milliseconds']:.0f} ms per "
            "frame"
        )
    write_json(project.metrics / "benchmark.json", counts)
    host, size = machine_record(machine), list(params.benchmark.image_size)
    write_json(project.results / "benchmark.json", {"image_size": size, "machine": host, **times})


def _measured(
    arch: str, decoders: int, networks: int, settings: Benchmark, machine: Machine, bar: Step
) -> dict[str, Any]:
    """With pre- and post-processing and without, in turns."""
    size = settings.image_size
    way = Candidate(arch, decoders, size, machine, networks)
    whole, network = interleave(
        [way, replace(way, part="network")], settings.warmup, settings.repeats, bar
    )
    return {
        "multiply_adds": networks * multiply_adds(arch, decoders, size),
        **figures(whole),
        "network_milliseconds": figures(network)["milliseconds"],
    }


def figures(timing: Timing) -> dict[str, float]:
    """Of one frame: milliseconds (median, 95th percentile, first call), frames per second, MiB of memory."""
    values = (
        round(1000 * timing.median, 2),
        round(1000 * timing.p95, 2),
        round(1000 * timing.first, 2),
        round(1 / timing.median, 2),
        round(timing.peak / 2**20, 1),
    )
    return dict(zip(FIGURES, values, strict=True))
