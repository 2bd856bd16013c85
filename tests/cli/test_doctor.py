"""`equipoise doctor` on an environment made up of folders: hosts, plug-ins that misbehave, extras, a damaged cache."""

import dataclasses
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from equipoise.cli import doctor, health, main
from equipoise.core import sandbox
from equipoise.language import catalog

PLUG_INS = {
    "registers": "import verl; value = verl.entered('mine')(type('A', (), {})); verl.REGISTRY['elsewhere'] = str",
    "good": "print('noise on stdout'); value = 1",
    "raises": "raise KeyError(__import__('os').environ['MY_TOKEN'] + ' two\\nlines ' + 'x' * 500)",
    "exits": "raise SystemExit(3)",
    "dies": "import os; os.kill(os.getpid(), 11)",
    "hangs": "import time; time.sleep(60)",
    "nothing_of_that_name": "",
}


def install(
    site: Path, name: str, version: str, files: dict[str, str], entry_points: str = "", requires: str = ""
) -> None:
    """What pip leaves behind: a folder of metadata, and modules beside it."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
    (info / "entry_points.txt").write_text(entry_points)
    for module, source in files.items():
        (site / f"{module}.py").write_text(source)


@pytest.fixture
def site(tmp_path, monkeypatch):
    # Inspect AI and what is ours for TRL are really here, and importing them takes longer than a test may.
    hosts = [dataclasses.replace(host, ours="") for host in health.HOSTS if host.name != "Inspect AI"]
    monkeypatch.setattr(health, "HOSTS", tuple(hosts))
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
    return folder


@pytest.fixture
def without_torch(monkeypatch):
    """Its start takes longer than everything else."""
    monkeypatch.setattr(health, "devices", list)


def findings(capsys, section: str) -> dict[str, tuple[str, str]]:
    content = json.loads(capsys.readouterr().out)
    return {each["name"]: (each["state"], each["about"]) for each in content[section]}


def test_a_broken_plug_in_is_named_and_harms_nothing(site, capsys, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 3.0)
    absent = health.Host("Nowhere", "nowhere-to-be-had", "nowhere", "nowhere.plugins")
    monkeypatch.setattr(health, "HOSTS", (*health.HOSTS, absent))
    points = "".join(f"{name} = {name}_plug:value\n" for name in PLUG_INS)
    files = {f"{name}_plug": source for name, source in PLUG_INS.items()}
    # The host says whether it was told to leave its plug-ins alone; it comes before the plug-in.
    files["verl"] = (
        "import os, sys; assert os.environ['VERL_USE_EXTERNAL_PLUGINS'] == 'none' and 'good_plug' not in sys.modules\n"
        "REGISTRY = {'of the host': print}\n"
        "def entered(name):\n    return lambda value: REGISTRY.setdefault(name, value)\n"
    )
    hosts = {host.name: host for host in health.HOSTS}
    hosts["verl"] = dataclasses.replace(hosts["verl"], registries=("verl:REGISTRY",))
    monkeypatch.setattr(health, "HOSTS", tuple(hosts.values()))
    install(site, "verl", "0.9.1", files)
    install(site, "others", "2.0", {}, f"[verl.plugins]\n{points}[nowhere.plugins]\nmine = others:tasks\n")
    with ThreadPoolExecutor(6) as pool:
        found = {each.name: (each.state, each.about) for each in health.plug_ins(pool, 3.0)}
    assert found["verl"] == ("works", "0.9.1")
    assert found["verl: registers"] == ("works", "registers_plug:value, from others 2.0: mine")
    assert found["verl: good"] == ("works", "good_plug:value, from others 2.0")
    state, about = found["verl: raises"]
    assert state == "broken" and "KeyError: '[key] two" in about and about.endswith("…") and "\n" not in about
    assert found["verl: exits"] == ("broken", "exits_plug:value, from others 2.0: SystemExit: 3")
    assert "ended with signal 11" in found["verl: dies"][1]
    assert found["verl: hangs"] == ("broken", "hangs_plug:value, from others 2.0: did not end within 3 seconds")
    assert "no attribute 'value'" in found["verl: nothing_of_that_name"][1]
    assert found["Nowhere"] == ("absent", "not installed")
    assert found["Nowhere: mine"] == ("absent", "others:tasks, from others 2.0; Nowhere is not installed")
    assert "hunter2" not in str(found)


def test_a_host_that_cannot_be_imported_breaks_the_doctor_s_verdict(site, without_torch, capsys):
    install(site, "trl", "1.16.0", {"trl": "import not_there"})
    assert main(["doctor", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [
        line for line in content["broken"] if line.startswith("TRL: 1.16.0") and "No module named 'not_there'" in line
    ]
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "✕ TRL" in out and "broken: 1.16.0" in out and out.rstrip().endswith("1 broken")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compares with what Linux says")
def test_versions_devices_cache_data_and_sandbox_of_this_machine(site, capsys):
    assert main(["doctor", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["broken"] == []
    by_name = {each["name"]: each for section in content.values() for each in section if isinstance(each, dict)}
    assert list(content) == ["versions", "devices", "extras", "plug-ins", "cache", "data", "sandbox", "broken"]
    for name in ("torch", "transformers", "accelerate", "peft"):
        assert by_name[name]["about"] == metadata.version(name)
    assert by_name["CPU"]["facts"]["cores"] == len(os.sched_getaffinity(0))
    pages = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1])
    assert by_name["CPU"]["facts"]["memory_bytes"] == pytest.approx(pages * 1024, rel=0.02)
    assert by_name["EQUIPOISE_CACHE"]["state"] == by_name["EQUIPOISE_DATA"]["state"] == "absent"
    assert by_name["smollm2"]["about"] == "93 MB to download: equipoise models fetch smollm2"
    assert by_name["isolation"]["state"] in ("works", "absent")


def test_a_model_is_verified_byte_by_byte(site, without_torch, capsys):
    place = catalog.expected_folder("smollm2")
    place.mkdir(parents=True)
    content = b"weights"
    files = {"model.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (place / "model.safetensors").write_bytes(content)
    source = catalog.CATALOG["smollm2"].sha256
    (place / "manifest.json").write_text(json.dumps({"source_sha256": source, "files": files}))
    assert main(["doctor", "--json"]) == 0
    cache = findings(capsys, "cache")
    assert cache["smollm2"][0] == "works" and cache["smollm2"][1].endswith("verified")
    assert cache["EQUIPOISE_CACHE"][1].endswith("in 2 files")
    (place / "model.safetensors").write_bytes(b"wEights")  # as long, and another content
    assert main(["doctor", "--json"]) == 1
    state, about = findings(capsys, "cache")["smollm2"]
    assert state == "broken" and "another content" in about and "equipoise models fetch smollm2" in about


def test_data_that_is_named_and_not_there_is_broken(site, without_torch, capsys, monkeypatch):
    for name in ("tofu", "wmdp", ".hidden"):
        (site.parent / "data" / name).mkdir(parents=True)
    monkeypatch.setenv("EQUIPOISE_DATA", str(site.parent / "data"))
    assert main(["doctor", "--json"]) == 0
    assert findings(capsys, "data")["EQUIPOISE_DATA"] == ("works", f"{site.parent / 'data'}: tofu, wmdp")
    monkeypatch.setenv("EQUIPOISE_DATA", str(site.parent / "dta"))
    assert main(["doctor", "--json"]) == 1
    assert findings(capsys, "data")["EQUIPOISE_DATA"][0] == "broken"


REQUIRES = """Requires-Dist: torch>=2.8
Requires-Dist: numpy>=99
Requires-Dist: not-there>=1
Requires-Dist: only-elsewhere; sys_platform == "nowhere"
Provides-Extra: have
Requires-Dist: scipy>=1; extra == "have"
Provides-Extra: ray
Requires-Dist: ray-of-nowhere>=2.40; extra == "ray"
Requires-Dist: scipy>=99; extra == "ray"
Provides-Extra: all
Requires-Dist: equipoise[have,ray]; extra == "all"
"""


def test_extras_and_dependencies_are_read_from_the_metadata(site, monkeypatch):
    install(site, "equipoise", "9.9", {}, requires=REQUIRES)
    scipy = metadata.version("scipy")
    assert [(each.name, each.state, each.about) for each in health.extras()] == [
        ("have", "works", f"scipy {scipy}"),
        ("ray", "absent", f"without ray-of-nowhere, scipy {scipy}, not >=99: pip install 'equipoise[ray]'"),
        ("all", "absent", f"without ray-of-nowhere, scipy {scipy}, not >=99: pip install 'equipoise[all]'"),
    ]
    found = {each.name: (each.state, each.about) for each in health.packages()}
    assert found["equipoise"] == ("works", "9.9") and found["torch"][0] == "works"
    assert found["numpy"] == ("broken", f"{metadata.version('numpy')} is installed; pip install 'numpy>=99'")
    assert found["not-there"] == ("broken", "is not installed; pip install 'not-there>=1'")
    assert "only-elsewhere" not in found and "scipy" not in found


def test_what_a_plug_in_started_does_not_outlive_the_look(site):
    mark = site / "mark"
    child = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    source = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    install(site, "starts", "1", {"starts": source}, "[equipoise.studies]\nstarts = starts\n")
    with ThreadPoolExecutor(1) as pool:
        found = {each.name: each.state for each in health.plug_ins(pool)}
    assert found["Equipoise: starts"] == "works"
    time.sleep(2)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("seen", "state", "said"),
    [
        (sandbox.Isolation(True, 7, ""), "works", "Landlock (version 7) and a filter of system calls"),
        (sandbox.Isolation(True, 0, "", ("Landlock", "a /proc")), "works", "; without Landlock; without a /proc"),
        (sandbox.Isolation(False, 0, "forbidden: sysctl -w a=1"), "absent", "forbidden: sysctl -w a=1; code that"),
    ],
)
def test_isolation_says_what_is_weaker_or_why_there_is_none(monkeypatch, seen, state, said):
    monkeypatch.setattr(sandbox, "isolation", lambda: seen)
    (found,) = doctor._sandbox()
    assert found.state == state and said in found.about
