"""Stage ``benchmark``: what the teachers and the student cost, in parameters and time per frame."""

from dataclasses import replace
from typing import Any

from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from pipeline.settings import Benchmark, Training
from pipeline.timing.cost import multiply_adds, parameters
from pipeline.timing.host import machine_record
from pipeline.timing.interleaved import interleave
from pipeline.timing.latency import Candidate
from stages.reporting.figures import figures
from stages.shared.console import Step, progress, say
from stages.shared.project import Project


def run(project: Project, machine: Machine) -> None:
    """Measure, and write two files.

    metrics/benchmark.json has the parameters, results/benchmark.json the times, with the machine
    that they hold for.
    """
    params = project.params
    decoders = len(params.data.anatomies)
    forms = {
        "teachers": (params.teacher, 1, decoders),  # N networks, one after another
        "student": (params.student, decoders, 1),
    }
    counts = {}
    times = {}
    for name, (settings, n, networks) in forms.items():
        count = networks * parameters(create_model(settings.arch, n, shared=settings.shared))
        counts[name] = {"parameters": count}
        with progress(f"{name}: frames measured") as bar:
            times[name] = {
                "arch": settings.arch,
                "decoders": settings.decoders,
                **_measured(settings, n, networks, params.benchmark, machine, bar),
            }
        milliseconds = times[name]["milliseconds"]
        say(f"{name}: {count / 1e6:.2f} M parameters, {milliseconds:.0f} ms per frame")
    write_json(project.metrics / "benchmark.json", counts)
    host = machine_record(machine)
    size = list(params.benchmark.image_size)
    write_json(project.results / "benchmark.json", {"image_size": size, "machine": host, **times})


def _measured(
    trained: Training,
    decoders: int,
    networks: int,
    settings: Benchmark,
    machine: Machine,
    bar: Step,
) -> dict[str, Any]:
    """From frame to masks, and the network alone, in interleaved measurement."""
    size = settings.image_size
    candidate = Candidate(trained.arch, decoders, size, machine, networks, shared=trained.shared)
    whole, network = interleave(
        [candidate, replace(candidate, part="network")], settings.warmup, settings.repeats, bar
    )
    return {
        "multiply_adds": networks
        * multiply_adds(trained.arch, decoders, size, shared=trained.shared),
        **figures(whole),
        "network_milliseconds": figures(network)["milliseconds"],
    }
