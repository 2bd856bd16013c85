"""The folder of a job: resumable while it works, moved to its final name when it is done, never overwritten.

    NAME.partial/    while the job works; settings.json says with what
    NAME/            the artifact, complete; its run.json is what --config takes

The same settings resume NAME.partial, or find NAME done. Other settings are refused by name, or, with fresh, what is there
is set aside under a numbered name.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput
from equipoise.core.files import lock, write_atomic

SETTINGS = "run.json"
INPUTS = "inputs.json"


@dataclass(frozen=True)
class JobFolder:
    """work: where the job writes. final: where the artifact will be. complete: whether it is there already."""

    work: Path
    final: Path
    complete: bool

    def finish(self) -> Path:
        """Move the finished work to its final name; returns it."""
        self.work.rename(self.final)
        return self.final


@contextmanager
def job_folder(
    out: Path, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None, *, fresh: bool = False
) -> Iterator[JobFolder]:
    """The folder of a job with these settings (JSON values) and inputs (name -> sha256), held against other processes.

    Raises BadInput when `out` holds other settings, other inputs, or something that is no job's folder.
    """
    folder = opened(out)
    final, work = folder.final, folder.work
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(final.with_name(f".{final.name}.lock"), waiting_for=f"another process that writes {out}"):
        if fresh:
            _set_aside(final)
            _set_aside(work)
        for folder in (final, work):
            if folder.exists():
                _compare(folder, settings, inputs or {})
        if not final.exists() and not work.exists():
            work.mkdir()
            write_atomic(work / INPUTS, json.dumps(dict(inputs or {}), indent=2, sort_keys=True))
            write_atomic(work / SETTINGS, json.dumps(settings, indent=2, sort_keys=True))
        try:
            yield opened(out)
        except BadInput:  # found wrong before any work: the next, mended request must not meet these settings
            if work.exists() and {child.name for child in work.iterdir()} <= {INPUTS, SETTINGS}:
                shutil.rmtree(work)
            raise


def opened(out: Path) -> JobFolder:
    """The folder as it is, without holding it: for the processes of a job that only read."""
    final = out.expanduser().absolute()
    return JobFolder(work=final.with_name(final.name + ".partial"), final=final, complete=final.exists())


def command_line(command: str, options: Mapping[str, Any], out: Path) -> str:
    """What to type for these options (True: a flag, a list: commas between, None and False: left out) and this folder."""
    words = ["equipoise", *command.split()]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return shlex.join([*words, "--out", out.name])


def digest(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    remedy = "Give another --out, or --fresh to set it aside and start anew."
    try:
        stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        stored_inputs = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if {child.name for child in folder.iterdir()} <= {INPUTS}:  # ended between mkdir and the first setting
            shutil.rmtree(folder)
            return
        raise BadInput(f"{folder} is there but holds no readable {SETTINGS} of a job. {remedy}") from error
    wanted = json.loads(json.dumps(settings))
    different = [
        f"{name} {stored.get(name)!r} (now {wanted.get(name)!r})"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if different:
        raise BadInput(f"{folder} holds other settings: {', '.join(different[:3])}. {remedy}")
    changed = [name for name, value in inputs.items() if stored_inputs.get(name) != value]
    if changed:
        raise BadInput(f"{folder} was begun with another content of {', '.join(changed)}. {remedy}")


def _set_aside(folder: Path) -> None:
    if folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
