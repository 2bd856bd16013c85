"""What holds for the whole package: every module imports, the light commands stay light, nothing unpickles."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import equipoise

SOURCE = Path(equipoise.__file__).parent
MODULES = [
    module.name for module in pkgutil.walk_packages(equipoise.__path__, "equipoise.") if "__main__" not in module.name
]
HEAVY = ("torch", "transformers", "pyarrow", "altair", "scipy")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    importlib.import_module(name)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["study", "list"], ["study", "show", "sago"], ["unlearn", "--help"], ["models", "--help"]]
)
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys; from equipoise.cli import main; code = main(sys.argv[1:]);"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "LOADED [] 0", done.stderr


@pytest.mark.parametrize("package", ["language", "unlearning", "verification", "chat", "judging"])
def test_what_a_package_offers_is_there(package):
    module = importlib.import_module(f"equipoise.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_nothing_unpickles():
    forbidden = re.compile(r"\bimport pickle\b|\btorch\.load\(|\btorch\.save\(|\bjoblib\b|allow_pickle=True")
    found = [str(path) for path in SOURCE.rglob("*.py") if forbidden.search(path.read_text(encoding="utf-8"))]
    assert found == []
