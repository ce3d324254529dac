"""``mtkd init``: put a preset in place as params.yaml."""

import re
from importlib.resources import files
from pathlib import Path

from pipeline.errors import MtkdError
from pipeline.files import write_atomically
from stages.shared.console import say
from stages.shared.params import load_params
from stages.shared.project import Places


def run(places: Places, preset: str, data_root: Path | None, force: bool) -> None:
    """Write params.yaml from ``stages/presets/<preset>.yaml``, comments included.

    Raises:
        MtkdError: no such preset, a data root that isn't there, or a params.yaml that would be
            lost.
    """
    folder = files("stages") / "presets"
    names = sorted(Path(p.name).stem for p in folder.iterdir())
    if preset not in names:
        raise MtkdError(f"no preset '{preset}': choose one of {', '.join(names)}")
    text = (folder / f"{preset}.yaml").read_text()
    if data_root is not None:
        if not data_root.is_dir():
            raise MtkdError(f"--data-root {data_root} is not a folder")
        # Absolute: an experiment in a temporary copy of the project must find it, too.
        text = re.sub(
            r"(?m)^  root: .*$", lambda _: f"  root: {data_root.resolve()}", text, count=1
        )
    params = places.params_file
    if params.exists():
        backup = params.with_name(f"{params.name}.bak")
        if not force:
            raise MtkdError(
                f"{params} is here already: add --force to replace it (it is kept as {backup})"
            )
        write_atomically(backup, params.read_bytes())
    write_atomically(params, text.encode())
    root = load_params(params).data.root
    # The phantom's folder is what `dvc repro` makes.
    is_there = Path(root).is_dir() or Path(root) == places.phantom
    advice = "`dvc repro`" if is_there else "put the path of your frames there, then `dvc repro`"
    say(f"{params}: preset {preset}, data.root {root}; next: {advice}")
