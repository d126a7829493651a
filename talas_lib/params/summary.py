"""The table a notebook shows after its parameters were checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from talas_lib.params.sources import ResolvedSource, resolve_source
from talas_lib.params.specs import CorpusSpec, OptimizerSpec, StudentSpec, TeacherSpec
from talas_lib.params.vocabulary import VOCABULARY, float_literal


def summary_table(
    values: Mapping[str, Any],
    origins: Mapping[str, str],
    unused: Mapping[str, str],
    specs: Iterable[tuple[str, BaseModel]],
) -> str:
    """Plain text: one line a parameter with its origin, then the models and settings the names stand for."""
    rows = [(name, _shown(value), _origin(origins[name])) for name, value in values.items() if name not in unused]
    name_width = max(len(name) for name, _, _ in rows)
    value_width = min(28, max(len(value) for _, value, _ in rows))
    lines = [f"{name:<{name_width}}  {value:<{value_width}}  {origin}".rstrip() for name, value, origin in rows]
    lines += [f"{name:<{name_width}}  not used: {reason}" for name, reason in unused.items()]
    stated = [f"{name}: {_described(spec)}" for name, spec in specs]
    return "\n".join([*lines, "", *stated])


def _origin(origin: str) -> str:
    return f"params/{origin}.yaml" if "/" in origin else f"from {origin}" if origin in VOCABULARY else origin


def _shown(value: Any) -> str:
    return float_literal(value) if isinstance(value, float) else str(value)


def _described(spec: BaseModel) -> str:
    if isinstance(spec, (TeacherSpec, StudentSpec)):
        parts = [
            spec.name,
            source_text(resolve_source(spec)),
            f"{spec.pooling} pooling",
            f"{spec.max_length} tokens",
        ]
        if isinstance(spec, StudentSpec) and spec.layers is not None:
            parts.insert(2, f"layers {', '.join(map(str, spec.layers))}")
        return ", ".join(parts)
    if isinstance(spec, CorpusSpec):
        return ", ".join(part for part in (spec.name, spec.path, spec.description) if part)
    tasks = getattr(spec, "tasks", None)
    if tasks is not None:
        return f"{spec.name}: {', '.join(task.name for task in tasks)}"  # type: ignore[attr-defined]
    if isinstance(spec, OptimizerSpec):
        return ", ".join([spec.name, *(f"{name} {_shown(value)}" for name, value in spec.settings.items())])
    return ", ".join(f"{name} {_shown(value)}" for name, value in spec.model_dump().items())


def source_text(source: ResolvedSource) -> str:
    """A resolved source in words."""
    if source.kind == "local":
        return f"folder {source.path}"
    if source.kind == "package":
        return f"package {source.asset}"
    if source.kind == "tiny":
        return f"random {source.arch}"
    return f"hub {source.hub_id}" + (f"@{source.revision[:8]}" if source.revision else "")
