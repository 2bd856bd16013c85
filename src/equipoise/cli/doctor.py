"""`equipoise doctor`: what this machine has, what of it works, and what to type for the rest."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from equipoise.cli.health import Finding


def doctor(*, json: Annotated[bool, Parameter(negative="", help="Print one JSON object.")] = False) -> int:
    """Say what this machine has: versions, devices, extras, plug-ins, cache, data, isolation. Nothing is fetched.

    Exit code 1 when something that is installed is broken; what is merely absent is no fault.

    Example: equipoise doctor
    """
    from json import dumps

    sections = _examined()
    broken = [
        f"{each.name}: {each.about}" for findings in sections.values() for each in findings if each.state == "broken"
    ]
    if json:
        listed = {
            title: [
                {
                    "name": each.name,
                    "state": each.state,
                    "about": each.about,
                    **({"facts": dict(each.facts)} if each.facts else {}),
                }
                for each in findings
            ]
            for title, findings in sections.items()
        }
        print(dumps({**listed, "broken": broken}, indent=1, ensure_ascii=False))
        return 1 if broken else 0
    signs = {"works": "✓", "absent": "–", "broken": "✕"}
    for title, findings in sections.items():
        width = max((len(each.name) for each in findings), default=0)
        print(title.capitalize())
        for each in findings:
            word = "broken: " if each.state == "broken" else ""
            print(f"  {signs[each.state]} {each.name:<{width}}  {word}{each.about}")
        if not findings:
            print("  – none")
    print(f"\n{len(broken)} broken" if broken else "\nNothing is broken.")
    return 1 if broken else 0


def _examined() -> "Mapping[str, list[Finding]]":
    """Everything at once: most of the time goes by in other processes, or in hashing, which lets others run."""
    from equipoise.cli import health

    with ThreadPoolExecutor(4) as pool, ThreadPoolExecutor(2) as imports:
        sections = {
            "versions": pool.submit(health.packages),
            "devices": pool.submit(health.devices),
            "extras": pool.submit(health.extras),
            "plug-ins": pool.submit(health.plug_ins, imports),
            "cache": pool.submit(_cache),
            "data": pool.submit(_data),
            "sandbox": pool.submit(_sandbox),
        }
        return {title: section.result() for title, section in sections.items()}


def _cache() -> "list[Finding]":
    """The cache folder and the models of the catalogue in it, every byte compared with their manifests."""
    from equipoise.cli.health import Finding, gigabytes
    from equipoise.core.files import CACHE_VARIABLE, cache_folder
    from equipoise.language import catalog

    folder = cache_folder()
    if not folder.exists():
        findings = [Finding(CACHE_VARIABLE, "absent", f"{folder} is not there yet; it is made when it is needed")]
    elif not folder.is_dir():
        findings = [Finding(CACHE_VARIABLE, "broken", f"{folder} is no folder: remove it, or name another")]
    else:
        files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        about = f"{folder}, {gigabytes(sum(files))} in {len(files)} files"
        findings = [Finding(CACHE_VARIABLE, "works", about, {"bytes": sum(files), "files": len(files)})]
    for name, entry in catalog.CATALOG.items():
        model_folder = catalog.expected_folder(name)
        problem = catalog.problem(model_folder, entry, hashes=True)
        fetch = f"equipoise models fetch {name}"
        if problem is None:
            findings.append(Finding(name, "works", f"{gigabytes(_size(model_folder))}, verified"))
        elif model_folder.exists():
            findings.append(Finding(name, "broken", f"{problem}; made anew by: {fetch}"))
        else:
            findings.append(Finding(name, "absent", f"{gigabytes(entry.wheel_bytes)} to download: {fetch}"))
    return findings


def _data() -> "list[Finding]":
    import os

    from equipoise.cli.health import Finding
    from equipoise.data.public import VARIABLE

    root = os.environ.get(VARIABLE)
    if not root:
        return [Finding(VARIABLE, "absent", "not set; public data sets are read from the folder that it names")]
    if not Path(root).is_dir():
        return [Finding(VARIABLE, "broken", f"{root} is no folder")]
    sets = sorted(path.name for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith("."))
    return [Finding(VARIABLE, "works", f"{root}: {', '.join(sets) or 'nothing'}", {"sets": sets})]


def _sandbox() -> "list[Finding]":
    from equipoise.cli.health import Finding
    from equipoise.core.sandbox import isolation
    from equipoise.core.secrets import one_line

    seen = isolation()
    facts = {"landlock": seen.landlock, "lacking": list(seen.lacking)}
    if not seen.available:
        why = f"{one_line(seen.reason)}; code that nobody has read is refused here"
        return [Finding("isolation", "absent", why, facts)]
    walls = f"namespaces, Landlock (version {seen.landlock})" if seen.landlock else "namespaces"
    weaker = "".join(f"; without {each}" for each in seen.lacking)
    about = f"{walls} and a filter of system calls: code that nobody has read can be run{weaker}"
    return [Finding("isolation", "works", about, facts)]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
