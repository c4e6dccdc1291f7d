"""hivemind without torch, for the processes that hold no tensors: a bootstrap peer, a monitor.

The `__init__` of hivemind and of some of its folders imports everything that the library can do, torch and its averagers
included: 290 MB and two seconds, of which a DHT node needs neither. `without_torch` puts a package in the place of each of
these `__init__`s that imports a name from the module that defines it when the name is first asked for. Nothing of hivemind is
changed or copied: its modules are the ones that run, in their own files.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("hivemind", "hivemind.utils", "hivemind.dht")


def without_torch() -> None:
    """Call it before the first import of hivemind; later it changes nothing, since the modules are there already.

    A name that an `__init__` does not import from elsewhere is an AttributeError, as it is for any module.
    """
    if "hivemind" in sys.modules:
        return
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(f"{name} is not installed", name=name)
        package = _LazyPackage(name, spec, origins_of(Path(spec.origin).read_text("utf-8"), name))
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)


class _LazyPackage(ModuleType):
    """A package whose names are imported one by one."""

    def __init__(self, name: str, spec: importlib.machinery.ModuleSpec, origins: Mapping[str, str]) -> None:
        super().__init__(name)
        self.__spec__ = spec
        self.__loader__ = spec.loader
        self.__file__ = spec.origin
        self.__package__ = name
        self.__path__ = list(spec.submodule_search_locations or ())
        self.__version__ = importlib.metadata.version("hivemind")
        self.__origins = origins

    def __getattr__(self, name: str) -> Any:
        if name not in self.__origins:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        value = getattr(importlib.import_module(self.__origins[name]), name)
        setattr(self, name, value)
        return value


def origins_of(source: str, package: str) -> dict[str, str]:
    """The names that the source of an `__init__` imports from elsewhere, each with the module that it comes from."""
    origins: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom):
            module = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
            origins |= {alias.asname or alias.name: module for alias in statement.names}
    return origins
