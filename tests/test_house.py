"""What holds for the whole package: every module imports, the light commands stay light, nothing unpickles."""

import contextlib
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import equipoise
from equipoise.core.errors import MissingExtra

SOURCE = Path(equipoise.__file__).parent
MODULES = [
    module.name for module in pkgutil.walk_packages(equipoise.__path__, "equipoise.") if "__main__" not in module.name
]
HEAVY = ("torch", "transformers", "pyarrow", "altair", "scipy")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    with contextlib.suppress(MissingExtra):
        importlib.import_module(name)


LIGHT = [
    ["--help"],
    ["study", "list"],
    ["study", "show", "sago"],
    ["unlearn", "--help"],
    ["reinforce", "--help"],
    ["audit", "judge", "--help"],
    ["prm", "train", "--help"],
    ["prm", "score", "--help"],
    ["prm", "evaluate", "--help"],
    ["route", "serve", "--help"],
    ["certify", "run", "--help"],
    ["certify", "check", "--help"],
    ["route", "label", "--help"],
    ["route", "fit", "--help"],
    ["route", "evaluate", "--help"],
    ["report", "--help"],
    ["models", "--help"],
    ["doctor", "--help"],
]


def test_light_commands_import_nothing_heavy():
    """In one process: what a command imports is there for the next, so a heavy one shows at all that come after it."""
    code = (
        "import contextlib, json, sys; from equipoise.cli import main\n"
        "def heavy(arguments):\n"
        "    with contextlib.redirect_stdout(sys.stderr):\n"
        "        code = main(arguments)\n"
        f"    return code, [name for name in {HEAVY!r} if name in sys.modules]\n"
        f"print(json.dumps([heavy(arguments) for arguments in {LIGHT!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    seen = {" ".join(arguments): loaded for arguments, loaded in zip(LIGHT, json.loads(done.stdout), strict=True)}
    assert seen == {command: [0, []] for command in seen}, done.stderr


def test_the_import_contracts_name_every_room():
    """Every folder stands in the layers, and is forbidden to the scales or from them: a new one in neither would be free."""
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["name"]: contract for contract in settings["tool"]["importlinter"]["contracts"]}

    def named(contract, field):
        return sorted(name.removeprefix("equipoise.") for name in contracts[contract][field])

    folders = {path.parent.name for path in SOURCE.glob("*/*.py")}
    rooms = folders | {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    layers = [name for layer in contracts["Layers of the house"]["layers"] for name in layer.split(" | ")]
    assert sorted(layers) == sorted(rooms - {"study"})
    assert named("The scales know no domain", "source_modules") == ["study"]
    assert named("The scales know no domain", "forbidden_modules") == sorted(rooms - {"study", "core"})
    users = rooms - {"study", "studies", "cli"}
    assert named("Only studies and cli stand on the scales", "source_modules") == sorted(users)
    assert named("Only studies and cli stand on the scales", "forbidden_modules") == ["study"]


@pytest.mark.parametrize("package", ["language", "unlearning", "verification", "chat", "judging"])
def test_what_a_package_offers_is_there(package):
    module = importlib.import_module(f"equipoise.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_nothing_unpickles():
    forbidden = re.compile(r"\bimport pickle\b|\btorch\.load\(|\btorch\.save\(|\bjoblib\b|allow_pickle=True")
    found = [str(path) for path in SOURCE.rglob("*.py") if forbidden.search(path.read_text(encoding="utf-8"))]
    assert found == []
