"""Distillation methods, one a module, each with a `Config` and a `METHOD` class (see methods.base).
Torch-free at import.

A method counts as available when it has both a module here and a file of values,
`params/methods/<name>.yaml`.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.util import find_spec
from types import ModuleType

from pydantic import BaseModel

from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.methods.base import Method, Needs


def available() -> list[str]:
    """Names of the methods that can be trained, sorted."""
    from talas_lib import paths

    folder = paths.params_dir() / "methods"
    modules = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem in modules)


def module(name: str) -> ModuleType:
    """The module of a method. Raises TalasError for a name that is not in `available()`."""
    if not _is_available(name):
        names = available()
        raise TalasError(
            f"unknown method {name!r}.{did_you_mean(name, names)} Accepted: {listed(names)}."
            f" A new method is a module talas_lib/methods/{name}.py with Config and METHOD,"
            f" and its values in params/methods/{name}.yaml"
        )
    return importlib.import_module(f"talas_lib.methods.{name}")


def _is_available(name: str) -> bool:
    """As `available`, of one name, without a look at all the others."""
    from talas_lib import paths

    file = paths.params_dir() / "methods" / f"{name}.yaml"
    return name.isidentifier() and file.is_file() and find_spec(f"{__name__}.{name}") is not None


def config_class(name: str) -> type[BaseModel]:
    """The pydantic class of a method's settings. Raises TalasError for an unknown name."""
    return module(name).Config


def method_class(name: str) -> type[Method]:
    """The class of the method object (see methods.base.Method). Raises TalasError for an unknown name."""
    return module(name).METHOD


def builds_student(name: str) -> bool:
    """Whether the method computes its student instead of training it: then there is no loss to log or to analyse."""
    return method_class(name).builds_student


def needs(name: str, config: BaseModel) -> Needs:
    """What the method reads under this Config: teachers, token states, alignment. Raises TalasError for an unknown name."""
    return method_class(name).needs(config)
