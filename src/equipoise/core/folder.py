"""The folder of a job: resumable while it works, moved to its final name when it is done, never overwritten.

    NAME.partial/    while the job works; run.json says with which settings, inputs.json with which content of what it read
    NAME/            the artifact, complete; run.json is what --config takes, manifest.json has a digest of every file

The same settings resume NAME.partial, or find NAME done. Other settings are refused by name, or, with fresh, what is there
is set aside under a numbered name; only a folder that a job made is ever moved.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput
from equipoise.core.files import FILES, lock, publish, read_regular, seal, set_aside, sha256_file, unseal, write_atomic

SETTINGS = "run.json"
INPUTS = "inputs.json"
MANIFEST = "manifest.json"
REMEDY = "Give another --out, or --fresh to set it aside and start anew."

Read = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class JobFolder:
    """work: where the job writes. final: where the artifact will be. complete: whether it is there already.

    others: files that the user put into a finished folder which is work again: no part of the artifact.
    """

    work: Path
    final: Path
    complete: bool
    others: frozenset[str] = frozenset()

    def finish(self, command: str = "", drawn: Iterable[str] = (), scratch: Iterable[str] = ()) -> Path:
        """Give the finished work its final name, with a manifest; returns it.

        command: the job's. drawn: files made from the others. scratch: files and folders that are no part of it, and go once
        the name is there.
        """
        write_manifest(self.work, command, drawn, {*scratch, *self.others})
        publish(self.work, self.final)
        for name in scratch:
            FILES.remove(self.final / name)
        return self.final

    def reopen(self, damaged: Iterable[str]) -> "JobFolder":
        """A complete folder as work to be done again, without the files that are damaged, which are kept aside in it.

        A file of rows is copied there and stays: whoever appends to it leaves out the lines that are damaged, and the others
        were paid for.
        """
        aside, others = self.final / "damaged", unlisted(self.final)
        for name in damaged:
            number, source = 1, self.final / name
            while (target := aside / f"{number}" / name).exists():
                number += 1
            if os.path.lexists(source):
                target.parent.mkdir(parents=True, exist_ok=True)
                if name.endswith(".jsonl") and source.is_file() and not source.is_symlink():
                    shutil.copyfile(source, target)
                else:
                    FILES.replace(source, target)
        FILES.replace(self.final, self.work)  # first: a finished folder without a manifest is refused for ever
        (self.work / MANIFEST).unlink(missing_ok=True)
        FILES.sync_folder(self.work)
        FILES.sync_folder(self.work.parent)
        return JobFolder(self.work, self.final, complete=False, others=others)


@contextmanager
def job_folder(
    out: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    *,
    fresh: bool = False,
    read: Read = dict,
    needed: Iterable[Path] = (),
) -> Iterator[JobFolder]:
    """The folder of a job with these settings (JSON values) and inputs (name -> sha256), held against other processes.

    read: how stored settings are understood, where an earlier version wrote them otherwise. needed: paths that the job
    reads, in none of which a folder is set aside. Raises BadInput when `out` holds other settings, other inputs, or
    something that is no job's folder.
    """
    folder = opened(out)
    final, work = folder.final, folder.work
    _require_writable(out, final.parent)
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(final.with_name(f".{final.name}.lock"), waiting_for=f"another process that writes {out}"):
        if fresh:
            for path in (final, work):
                set_aside(path, made_by=made_by_a_job, inputs=needed)
        check_folder(out, settings, inputs, read=read)
        made = not final.exists() and not work.exists()
        if made:
            _make(work, settings, inputs or {})
        try:
            yield opened(out)
        except BadInput:  # found wrong before any work: the next, mended request must not meet these settings
            if made and work.exists() and {child.name for child in work.iterdir()} == {INPUTS, SETTINGS}:
                shutil.rmtree(work)
            raise


def check_folder(
    out: Path, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None, *, read: Read = dict
) -> None:
    """Raises BadInput, as `job_folder` does, when `out` cannot be written or holds something else. Changes nothing."""
    folder = opened(out)
    if str(folder.final).endswith(".partial"):
        raise BadInput(f"--out {out}: a name that ends in .partial is one of unfinished work; leave the ending away.")
    for path in (folder.final, folder.work):
        if os.path.lexists(path):
            _compare(path, settings, inputs or {}, read)
    _require_writable(out, folder.final.parent)


def _require_writable(out: Path, above: Path) -> None:
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise BadInput(f"--out {out}: nothing can be written in {above}.")


def opened(out: Path) -> JobFolder:
    """The folder as it is, without holding it: for the processes of a job that only read."""
    final = out.expanduser().absolute()
    return JobFolder(work=final.with_name(final.name + ".partial"), final=final, complete=final.exists())


def made_by_a_job(folder: Path) -> bool:
    """Whether a folder holds the settings and inputs that a job writes when it begins."""
    return all(isinstance(_json(folder / name), dict) for name in (SETTINGS, INPUTS))


def write_manifest(folder: Path, command: str, drawn: Iterable[str] = (), left_out: Iterable[str] = ()) -> None:
    """Write who made a folder, and size and sha256 of its files, but for those left out, into its manifest.json.

    What is drawn is the job's, also where a file of that name was left out before.
    """
    drawn = set(drawn)
    left_out = {MANIFEST, *left_out} - drawn
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_file(path), "drawn": name in drawn}
        for name, path in sorted(_files(folder).items())
        if left_out.isdisjoint({name, Path(name).parts[0]})
    }
    write_atomic(folder / MANIFEST, seal({"command": command, "files": files}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """command and files of a finished folder. Raises BadInput where there is no manifest, or one that was altered."""
    try:
        listed, sealed = unseal(read_regular(folder / MANIFEST))
        if not sealed:
            raise ValueError("it carries no digest")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{folder} has no {MANIFEST} that tells whether it is whole ({error}); earlier versions wrote none. {REMEDY}"
        ) from None
    return listed


def unlisted(folder: Path) -> frozenset[str]:
    """The files of a finished folder that its manifest does not list: the user's own. Raises as `read_manifest`."""
    return frozenset(_files(folder).keys() - read_manifest(folder)["files"].keys())


def damage(folder: Path) -> dict[str, bool]:
    """The files of a finished folder that are missing or altered -> whether they are only drawn from others.

    Raises BadInput as `read_manifest`. Files that nobody listed are the user's own.
    """
    return {
        name: row["drawn"]
        for name, row in read_manifest(folder)["files"].items()
        if not _is(folder / name, folder, row["bytes"]) or sha256_file(folder / name) != row["sha256"]
    }


def _is(path: Path, folder: Path, size: int) -> bool:
    inside = path.resolve().is_relative_to(folder.resolve())
    return inside and path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _files(folder: Path) -> dict[str, Path]:
    """Every file of a finished work by its name in the folder; what was set aside as damaged is no part of it."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if not name.startswith("damaged/") and ".damaged-" not in name}


def _make(work: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Both files are there when the folder has its name: no other ever has one of them alone."""
    begun = work.with_name(f".{work.name}.{os.getpid()}.tmp")
    FILES.remove(begun)
    begun.mkdir()
    write_atomic(begun / INPUTS, json.dumps(dict(inputs), indent=2, sort_keys=True))
    write_atomic(begun / SETTINGS, json.dumps(settings, indent=2, sort_keys=True, allow_nan=False))
    publish(begun, work)


def _json(path: Path) -> Any:
    """What a JSON file holds, None when it cannot be read as one."""
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return None


def _compare(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], read: Read) -> None:
    stored, stored_inputs = _json(folder / SETTINGS), _json(folder / INPUTS)
    if not isinstance(stored, dict) or not isinstance(stored_inputs, dict):
        raise BadInput(f"{folder} is there but holds no readable {SETTINGS} of a job. {REMEDY}")
    if different := differences(read(stored), json.loads(json.dumps(settings))):
        raise BadInput(f"{folder} holds other settings: {', '.join(different[:3])}. {REMEDY}")
    changed = [name for name, value in inputs.items() if stored_inputs.get(name) != value]
    if changed:
        raise BadInput(f"{folder} was begun with another content of {', '.join(changed)}. {REMEDY}")


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which settings differ, in words: "seed 0 (now 1)"."""
    return [
        f"{name} {stored.get(name)!r} (now {wanted.get(name)!r})"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
