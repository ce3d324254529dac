"""Stage ``benchmark``: what the teachers and the student cost, in parameters and in time for one frame."""

from pipeline.benchmark import latency, parameters
from pipeline.files import write_json
from pipeline.machine import Machine
from pipeline.models import create_model
from stages.console import say
from stages.layout import METRICS, RESULTS
from stages.machine_record import machine_record
from stages.params import load_params


def run(machine: Machine) -> None:
    """Write metrics/benchmark.json (parameters) and results/benchmark.json (times, with the machine they hold for)."""
    params = load_params()
    settings, decoders = params.benchmark, len(params.data.anatomies)
    forms = {
        "teachers": (params.teacher.arch, 1, decoders),  # N networks, one after another
        "student": (params.student.arch, decoders, 1),
    }
    counts, times = {}, {}
    for name, (arch, n, networks) in forms.items():
        network = create_model(arch, n)
        seconds = networks * latency(network, settings.image_size, settings.warmup, settings.repeats, machine)
        counts[name] = {"parameters": networks * parameters(network)}
        times[name] = {"arch": arch, "milliseconds": round(1000 * seconds, 1), "fps": round(1 / seconds, 2)}
        say(f"{name}: {counts[name]['parameters'] / 1e6:.2f} M parameters, {1000 * seconds:.0f} ms per frame")
    write_json(METRICS / "benchmark.json", counts)
    host = machine_record(machine)
    write_json(RESULTS / "benchmark.json", {"image_size": list(settings.image_size), "machine": host, **times})
