"""What the cells of a running notebook assigned: the parameters cell, and the cell papermill injects.

Papermill only logs a `-p` name that the notebook does not know, so the names have to be read from the source
itself.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from talas_lib.errors import TalasError
from talas_lib.params.notebooks import NotebookSchema
from talas_lib.params.vocabulary import from_papermill, reject_unknown

_INJECTED = "# Parameters"


@dataclass(frozen=True)
class Given:
    """values: parameter name to value, as the notebook holds it now. injected: names that papermill passed."""

    values: dict[str, Any]
    injected: frozenset[str]


def read_given(schema: NotebookSchema, namespace: Mapping[str, Any], cells: Sequence[str] | None) -> Given:
    """Parameter values of the notebook from its namespace, after the names in its parameter cells were
    checked.

    cells: IPython's `In`; None looks for it in the namespace, where IPython puts it; without it only the
    namespace is read. Raises TalasError for an unknown name, or a parameters cell that computes instead of
    stating values.
    """
    sources = [cell for cell in (namespace.get("In") if cells is None else cells) or () if isinstance(cell, str)]
    injected_cell = _latest_injected(sources)
    injected = _names(injected_cell)
    own = _latest_parameters_cell(sources, schema)
    reject_unknown(injected, schema.name, schema.names)
    reject_unknown(_names(own), schema.name, schema.names)
    _refuse_computed(own, schema.name)
    _refuse_computed(injected_cell, schema.name)
    elsewhere = {name for name in injected if name not in schema.names and not from_papermill(name)}
    wanted = [name for name in (*schema.names, *sorted(elsewhere)) if name in namespace]
    values = {name: namespace[name] for name in wanted if not isinstance(namespace[name], ModuleType)}
    return Given(values, frozenset(injected))


def _latest_injected(sources: Sequence[str]) -> list[ast.stmt]:
    cells = [_statements(source) for source in sources if source.lstrip().startswith(_INJECTED)]
    return cells[-1] if cells else []


def _latest_parameters_cell(sources: Sequence[str], schema: NotebookSchema) -> list[ast.stmt]:
    """The last executed cell that annotates at least half of the schema's names, else the one that annotates
    most.

    The last counts because a typo corrected in JupyterLab leaves its first version in the history.
    """
    best: list[ast.stmt] = []
    most = 0
    for source in sources:
        statements = _statements(source)
        if not all(isinstance(s, (ast.AnnAssign, ast.Assign)) for s in statements):
            continue
        names = {name for s in statements if isinstance(s, ast.AnnAssign) for name in _targets(s)}
        known = len(names & set(schema.names))
        if known and (2 * known >= len(schema.names) or known >= most):
            best, most = statements, known
    return best


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError):
        return []


def _targets(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.AnnAssign):
        return [statement.target.id] if isinstance(statement.target, ast.Name) else []
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []


def _names(statements: Sequence[ast.stmt]) -> list[str]:
    return list(dict.fromkeys(name for statement in statements for name in _targets(statement)))


def _refuse_computed(statements: Sequence[ast.stmt], notebook: str) -> None:
    for statement in statements:
        value = getattr(statement, "value", None)
        if value is None:
            continue
        try:
            ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            names = ", ".join(_targets(statement)) or "a value"
            raise TalasError(
                f"notebook {notebook}: {names} is computed ({ast.unparse(value)}) in the parameters cell,"
                " which states plain"
                " values only (text, finite numbers, True, False, None, lists, mappings); write the value"
                " itself"
            ) from None
