"""From a suite's specs to its tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.tasks import local, packaged, tiny
from talas_lib.tasks.data import Sources, Task, TaskData

if TYPE_CHECKING:
    from talas_lib.params.specs import TaskSpec, TaskSuiteSpec

_PACKAGE = "package:"
BUILDERS: dict[str, Callable[..., TaskData]] = {
    builder.__name__: builder
    for builder in (
        packaged.rated_polarity,
        packaged.question_pairs,
        packaged.news_similarity,
        packaged.next_utterance,
        packaged.sentence_ratings,
        packaged.question_clusters,
        packaged.question_retrieval,
        local.labelled,
        local.labelled_pairs,
        local.scored_pairs,
        local.judged_documents,
        local.labelled_clusters,
        local.rated_texts,
        local.rated_pairs,
        local.paraphrases,
        tiny.tiny_topics,
        tiny.tiny_pairs,
        tiny.tiny_similarity,
        tiny.tiny_retrieval,
        tiny.tiny_clusters,
        tiny.tiny_ratings,
    )
}


def load_tasks(suite: TaskSuiteSpec, *, assets: Callable[[str], Path], data_dir: Path | None) -> tuple[Task, ...]:
    """The tasks of a suite with their data.

    assets: folder of a packaged asset by name, called for what the tasks need. data_dir: root of local data. TalasError for
    an unknown builder or option, and where data is missing or malformed, with the task's name in front.
    """
    sources = Sources(assets, data_dir)
    return tuple(_build(spec, sources, suite.protocol) for spec in suite.tasks)


def needed_assets(suite: TaskSuiteSpec) -> tuple[str, ...]:
    """Packaged assets the tasks read, from their `source: package:<asset>`."""
    named = (spec.source.removeprefix(_PACKAGE) for spec in suite.tasks if spec.source.startswith(_PACKAGE))
    return tuple(dict.fromkeys(named))


def _build(spec: TaskSpec, sources: Sources, protocol: str) -> Task:
    if spec.builder not in BUILDERS:
        raise TalasError(
            f"task {spec.name}: no builder {spec.builder!r}; there are {listed(BUILDERS)}."
            f"{did_you_mean(spec.builder, BUILDERS)}"
        )
    options: dict[str, Any] = dict(spec.options)
    in_average = options.pop("in_average", True)
    builder = BUILDERS[spec.builder]
    accepted = [name for name in inspect.signature(builder).parameters if name != "sources"]
    for name in options:
        if name not in accepted:
            raise TalasError(
                f"task {spec.name}: builder {spec.builder} has no option {name!r}; it takes "
                f"{listed([*accepted, 'in_average'])}.{did_you_mean(name, accepted)}"
            )
    required = inspect.signature(builder).parameters
    absent = [name for name in accepted if required[name].default is inspect.Parameter.empty and name not in options]
    if absent:
        raise TalasError(f"task {spec.name}: builder {spec.builder} needs the option {listed(absent)}")
    try:
        data = builder(sources, **options)
    except TalasError as error:
        raise TalasError(f"task {spec.name}: {error}") from error
    if data.kind != spec.kind:
        raise TalasError(f"task {spec.name}: builder {spec.builder} makes a {data.kind} task, not {spec.kind}")
    return Task(
        name=spec.name,
        metric=spec.metric,
        data=data,
        in_domain=spec.in_domain,
        in_average=bool(in_average),
        protocol=protocol,
        source=spec.source,
        licence=spec.licence,
    )
