"""What this machine has and what of it works: packages, extras, devices, plug-ins. Nothing here can be harmed by it.

Whatever runs foreign code (torch's start, a plug-in's import) does so in a child process with a time limit: it may
crash, hang, print or exit. Everything else is read from the metadata of what is installed, so no list can be stale.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement

from equipoise.core.options import check_fields
from equipoise.core.secrets import one_line

State = Literal["works", "absent", "broken"]

PACKAGE = "equipoise"
SHOWN = ("torch", "transformers", "accelerate", "peft")
PATIENCE = 60.0  # seconds for an import; a first one of TRL on a slow or busy machine takes more than 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `about` says its version, why it is broken, or what to type to have it."""

    name: str
    state: State
    about: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class Host:
    """A framework that others plug into: its distribution, its module, and the entry points that it loads ("" none).

    ours: of one without entry points, our module for it. registries: where it keeps what is registered, each MODULE:NAME of
    a dictionary.
    """

    name: str
    distribution: str
    module: str
    group: str
    ours: str = ""
    registries: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def points(self) -> list[metadata.EntryPoint]:
        """What it loads by itself, else what a user of it imports from us."""
        if self.group:
            return list(metadata.entry_points(group=self.group))
        return [metadata.EntryPoint(PACKAGE, self.ours, "")] if self.ours else []


HOSTS = (
    Host("Equipoise", PACKAGE, "equipoise.study", "equipoise.studies"),
    Host("TRL", "trl", "trl", "", ours="equipoise.reinforcement.trl"),
    Host(
        "verl",
        "verl",
        "verl",
        "verl.plugins",
        registries=(
            "verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY",
            "verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY",
            "verl.trainer.distillation.losses:DISTILLATION_LOSS_REGISTRY",
        ),
        # verl imports all its plug-ins by itself; told not to, each can be looked at alone.
        environment={"VERL_USE_EXTERNAL_PLUGINS": "none"},
    ),
    Host("Inspect AI", "inspect_ai", "inspect_ai", "inspect_ai"),
)


# Packages


def packages() -> list[Finding]:
    """Python, this package, what it mostly stands on, and whatever else it needs that is missing or too old."""
    findings = [
        Finding("python", "works", f"{platform.python_version()} ({platform.system()} {platform.machine()})"),
        Finding(PACKAGE, "works", metadata.version(PACKAGE)),
    ]
    for requirement in _requirements():
        version, fits = _installed(requirement)
        if not fits:
            findings.append(Finding(requirement.name, "broken", _remedy(requirement, version)))
        elif requirement.name in SHOWN:
            findings.append(Finding(requirement.name, "works", version))
    order = ("python", PACKAGE, *SHOWN)
    return sorted(findings, key=lambda finding: order.index(finding.name) if finding.name in order else len(order))


def extras() -> list[Finding]:
    """The optional parts, with the sentence that installs each; several packages make one part."""
    findings = []
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        lacking = [
            (requirement, version)
            for requirement in _requirements(extra)
            for version, fits in [_installed(requirement)]
            if not fits
        ]
        if lacking:
            what = ", ".join(
                f"{requirement.name} {version}, not {requirement.specifier}" if version else requirement.name
                for requirement, version in lacking
            )
            findings.append(Finding(extra, "absent", f"without {what}: pip install '{PACKAGE}[{extra}]'"))
        else:
            have = ", ".join(f"{requirement.name} {_installed(requirement)[0]}" for requirement in _requirements(extra))
            findings.append(Finding(extra, "works", have))
    return findings


def _requirements(extra: str = "") -> list[Requirement]:
    """What the package itself needs, or what an extra adds to that; extras inside extras resolved."""
    declared = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    applying = [
        each
        for each in declared
        if (each.marker is None or each.marker.evaluate({"extra": extra}))
        and not (extra and (each.marker is None or each.marker.evaluate({"extra": ""})))
    ]
    inner = [
        each
        for named in applying
        if named.name == PACKAGE
        for name in sorted(named.extras)
        for each in _requirements(name)
    ]
    return [*(each for each in applying if each.name != PACKAGE), *inner]


def _installed(requirement: Requirement) -> tuple[str, bool]:
    """The installed version ("" for none) and whether it is one that is asked for."""
    version = _version(requirement.name)
    return version, bool(version) and requirement.specifier.contains(version, prereleases=True)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _remedy(requirement: Requirement, version: str) -> str:
    wanted = f"{requirement.name}{requirement.specifier}"
    return f"{f'{version} is installed' if version else 'is not installed'}; pip install '{wanted}'"


# Devices


def devices(seconds: float = PATIENCE) -> list[Finding]:
    """Cores, threads and memory, then what torch can compute on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = f"{usable} of {os.cpu_count()} cores, {gigabytes(memory)} of memory"
    facts = {"cores": usable, "memory_bytes": memory}
    seen, reason = ask("torch_devices", seconds=seconds)
    if seen is None:
        return [Finding("CPU", "works", cores, facts), Finding("torch", "broken", reason)]
    facts["threads"] = seen["threads"]
    findings = [Finding("CPU", "works", f"{cores}; torch computes with {seen['threads']} of them", facts)]
    for number, device in enumerate(seen["cuda"]):
        about = f"{device['name']}, {gigabytes(device['memory_bytes'])}, compute capability {device['capability']}"
        findings.append(Finding(f"CUDA {number}", "works", about, device))
    if not seen["cuda"]:
        driver = os.path.exists("/proc/driver/nvidia/version")  # noqa: PTH110
        why = (
            f"; this machine has an NVIDIA driver that torch {seen['version']} finds no device through"
            if driver
            else ""
        )
        findings.append(Finding("CUDA", "absent", f"none{why}"))
    if seen["mps_bytes"] is not None:
        about = f"{gigabytes(seen['mps_bytes'])} recommended at most"
        findings.append(Finding("MPS", "works", about, {"memory_bytes": seen["mps_bytes"]}))
    return findings


def torch_devices() -> dict[str, Any]:
    """What torch sees; run in a child process."""
    import torch

    cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": [
            {"name": each.name, "memory_bytes": each.total_memory, "capability": f"{each.major}.{each.minor}"}
            for each in cuda
        ],
        "mps_bytes": torch.mps.recommended_max_memory() if torch.backends.mps.is_available() else None,
    }


def gigabytes(size: float) -> str:
    """A number of bytes for a reader."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


# Plug-ins


def plug_ins(pool: Executor, seconds: float = PATIENCE) -> list[Finding]:
    """Every framework that we or others plug into, and every plug-in that is registered there, each imported alone."""
    looks: list[Callable[[], Finding]] = []
    for host in HOSTS:
        version = _version(host.distribution)
        if not version:
            looks.append(partial(Finding, host.name, "absent", "not installed"))
        elif host.distribution != PACKAGE:
            door = "" if host.group else "; it loads no entry points: import its trainers from us"
            looks.append(partial(_imported, host, None, f"{version}{door}", seconds))
        for point in host.points():
            about = f"{point.value}, from {point.dist.name} {point.dist.version}" if point.dist else point.value
            if version:
                looks.append(partial(_imported, host, point, about, seconds))
            else:
                name, why = f"{host.name}: {point.name}", f"{about}; {host.name} is not installed"
                looks.append(partial(Finding, name, "absent", why))
    return list(pool.map(lambda look: look(), looks))


def _imported(host: Host, point: metadata.EntryPoint | None, about: str, seconds: float) -> Finding:
    name = host.name if point is None else f"{host.name}: {point.name}"
    arguments = [host.module, ",".join(host.registries)]
    if point is not None:
        arguments += [point.name, point.value, point.group]
    brought, reason = ask("import_plug_in", *arguments, seconds=seconds, environment=host.environment)
    if reason:
        return Finding(name, "broken", f"{about}: {reason}")
    return Finding(name, "works", f"{about}: {', '.join(brought)}" if brought else about)


def import_plug_in(host: str, registries: str, *point: str) -> list[str]:
    """The host, then the entry point, as a user's program meets them; run in a child process.

    Gives what the plug-in brings, by name: what its module entered into the host's registries, its classes of the host's.
    """
    __import__(host)
    if not point:
        return []
    entry = metadata.EntryPoint(*point)
    entry.load()
    brought = [
        name
        for registry in filter(None, registries.split(","))
        for name, value in metadata.EntryPoint("", registry, "").load().items()
        if value.__module__ == entry.module
    ]
    classes = [
        name
        for name, value in vars(sys.modules[entry.module]).items()
        if isinstance(value, type)
        and value.__module__ == entry.module
        and any(base.__module__.split(".")[0] == host for base in value.__mro__)
    ]
    return sorted({*brought, *classes})


# The child process


def ask(
    what: str, *arguments: str, seconds: float = PATIENCE, environment: Mapping[str, str] | None = None
) -> tuple[Any, str]:
    """What a function of this module returns in a process of its own, and "", or None and why not in one line."""
    command = [sys.executable, "-P", "-m", __spec__.name if __spec__ else __name__, what, *arguments]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None, f"did not end within {seconds:g} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        answer = out.read()
    try:
        content = json.loads(answer)
        return content["value"], one_line(content["reason"])
    except ValueError:
        code = process.returncode
        ended = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        return None, f"the process that tried it ended with {ended}"


def _answer() -> None:
    """The child: standard output carries the answer only, whatever the imported code prints."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            value, reason = globals()[sys.argv[1]](*sys.argv[2:]), ""
        except BaseException as error:  # an import may also exit
            value, reason = None, f"{type(error).__name__}: {error}"
        json.dump({"value": value, "reason": reason}, out)
    os._exit(0)  # threads and exit handlers of what was imported are not waited for


if __name__ == "__main__":
    _answer()
