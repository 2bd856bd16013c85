"""What one value of an option stands for, registered where it is defined: `@COMBINE.register("sago")` above the rule.

Which names there are is read from the sources of a package, so that a command line can list them and import nothing; a
name's module is imported when what it stands for is asked for.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from equipoise.core.errors import BadInput, did_you_mean

T = TypeVar("T")
F = TypeVar("F")


class Registry(Mapping[str, T], Generic[T]):
    """Name -> what it stands for, in the order of the modules and of their lines.

    package: whose modules register, with `VARIABLE.register("name")`. variable: the name of this registry there.
    """

    def __init__(self, package: str, variable: str) -> None:
        self.package, self.variable = package, variable
        self._known: dict[str, T] = {}

    @overload
    def register(self, name: str) -> Callable[[F], F]: ...
    @overload
    def register(self, name: str, value: T) -> T: ...
    def register(self, name: str, value: Any = None) -> Any:
        """Register a value, or what stands below as a decorator. Raises ValueError for a name that stands for another."""

        def add(value: Any) -> Any:
            if self._known.setdefault(name, value) is not value:
                raise ValueError(f"{self.variable} has {name!r} already")
            return value

        return add if value is None else add(value)

    @cached_property
    def modules(self) -> dict[str, str]:
        """Name -> the module of the package that registers it."""
        written = re.compile(rf'^@?{re.escape(self.variable)}\.register\(\s*"([^"]+)"', re.MULTILINE)
        (folder,) = importlib.import_module(self.package).__path__
        return {
            name: f"{self.package}.{path.stem}"
            for path in sorted(Path(folder).glob("*.py"))
            for name in written.findall(path.read_text(encoding="utf-8"))
        }

    def __getitem__(self, name: str) -> T:
        if name not in self._known and name in self.modules:
            importlib.import_module(self.modules[name])
        if name not in self._known:
            raise BadInput(f"{self.variable} has no {name!r}. {did_you_mean(name, self)}")
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self.modules

    def __iter__(self) -> Iterator[str]:
        return iter({**self.modules, **self._known})

    def __len__(self) -> int:
        return len({**self.modules, **self._known})
