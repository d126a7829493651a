"""What notebook 08 shows of a run: functions from a `View` and plain settings to a table or a drawing.

They know nothing of widgets: a cell that calls one shows a static figure, with or without a browser; `controls` calls
the same ones again while a slider moves. What takes longer than drawing is computed once and kept in the view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from talas_lib import agreement, runs
from talas_lib.errors import TalasError, listed
from talas_lib.explore import drawings
from talas_lib.explore.drawings import Drawing
from talas_lib.texts import distinct, hash_order

if TYPE_CHECKING:
    from talas_lib.encoders import Encoder

TEACHER, UNTRAINED, TRAINED = MODELS = ("teacher", "untrained student", "trained student")
LAYOUTS = ("principal directions", "t-SNE")
SEEN_AT_ONCE = 8  # matrices of layers in a row, before some are left out
T = TypeVar("T")


@dataclass
class View:
    """A finished run with some sentences of its corpus and their vectors under three models.

    vectors: model to unit vectors `[sentences, d]`. load: model to a function that loads its encoder, which happens at the first
    sentence that is typed. Everything costly is kept in `kept`, by what it depends on.
    """

    run: runs.Run
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    vectors: Mapping[str, np.ndarray]
    load: Mapping[str, Callable[[], Encoder]]
    kept: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def keep(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """The result under this key, computed at the first call."""
        if key not in self.kept:
            self.kept[key] = compute()
        found: T = self.kept[key]
        return found

    def encoder(self, model: str) -> Encoder:
        """One of MODELS, loaded once. TalasError for another name."""
        if model not in self.load:
            raise TalasError(f"no model {model!r} to look at. Accepted: {listed(self.load)}")
        return self.keep(("encoder", model), self.load[model])

    def encode(self, model: str, text: str) -> np.ndarray:
        """Unit vector of a sentence, `[d]`; that of a sentence in the view is there already."""
        if text in self.texts:
            return self.vectors[model][self.texts.index(text)]
        return self.keep(("text", model, text), lambda: agreement.unit(self.encoder(model).encode([text]))[0])


def open_view(run: runs.Run, *, sentences: int = 400, device: str = "cpu") -> View:
    """A view on a finished run: a sample of its training sentences, each once, always the same.

    The teacher's vectors come from the cache; the student reads the sample before and after training.
    """
    from talas_lib import caching, sources, stages

    p = run.params
    corpus = stages.load_corpus(p)
    row = {text: i for i, text in reversed(list(enumerate(corpus.texts)))}
    chosen = hash_order(distinct(corpus.texts), "explore")[:sentences]
    rows = [row[text] for text in chosen]
    load = {
        TEACHER: lambda: sources.load_teacher(p.teacher_spec, device=device),
        UNTRAINED: lambda: sources.load_student(p.student_spec, device=device),
        TRAINED: lambda: stages.load_run_student(run).to(device),
    }
    view = View(run, tuple(chosen), tuple(corpus.sources[i] for i in rows), {}, load)
    taught = caching.cache_teacher(p, corpus).vectors(rows)
    read = {model: view.encoder(model).encode(chosen, normalize=False) for model in (UNTRAINED, TRAINED)}
    return replace(view, vectors={model: agreement.unit(v) for model, v in {TEACHER: taught, **read}.items()})


# ---- neighbours


def neighbours(view: View, query: str, count: int = 8) -> pd.DataFrame:
    """The nearest sentences of the view under each model, best first: rows are ranks, cells `cosine  sentence`.

    A sentence that is among the teacher's as well is marked with a star. The query itself does not count as its neighbour.
    TalasError for an empty query.
    """
    query = query.strip()
    if not query:
        raise TalasError("the sentence is empty; type one, such as: a great performance")
    others = np.array([i for i, text in enumerate(view.texts) if text != query])
    columns, first = {}, set[int]()
    for model, vectors in view.vectors.items():
        cosines = vectors[others] @ view.encode(model, query)
        near = others[np.argsort(-cosines, kind="stable")[:count]]
        first = first or set(near)
        shared = ["* " if model != TEACHER and i in first else "" for i in near]
        best = np.sort(cosines)[::-1]
        columns[model] = [f"{c:.2f}  {s}{view.texts[i]}" for i, c, s in zip(near, best, shared, strict=False)]
    return pd.DataFrame(columns, index=pd.RangeIndex(1, len(next(iter(columns.values()))) + 1, name="rank"))


# ---- relations, layer by layer


def batch_of(view: View, number: int, size: int) -> list[int]:
    """Positions of `size` sentences of the view, another choice for every number; the same sentences order alike."""
    rng = np.random.default_rng([7, number])
    chosen = rng.choice(len(view.texts), size=min(size, len(view.texts)), replace=False)
    return [int(i) for i in _by_similarity(view.vectors[TEACHER], chosen)]


def _by_similarity(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows so that what the teacher finds alike lies side by side: the leaves of an average-linkage tree."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows) < 3:
        return rows
    distances = np.clip(1 - vectors[rows] @ vectors[rows].T, 0, None)
    return rows[leaves_list(linkage(distances[np.triu_indices(len(rows), 1)], "average"))]


def layer_relations(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """Relation matrices R_l `[N, N]` of the pooled vectors of every layer, from the embeddings to the last (paper, eq. 4).

    A static encoder has one layer.
    """
    import torch

    from talas_lib.losses import relation_matrix
    from talas_lib.packed import Layout

    if not hasattr(encoder, "pooled"):
        vectors = agreement.unit(encoder.encode(texts))
        return [vectors @ vectors.T]
    tokens = encoder.tokenize(texts)
    ids, lengths = tokens.take(np.arange(len(texts)))
    encoder.eval()
    with torch.no_grad():
        layers = encoder.pooled(ids.to(encoder.device), Layout.of(lengths).to(encoder.device))[0]
    return [relation_matrix(vectors).cpu().numpy() for vectors in layers]


def relations(view: View, batch: int = 0, size: int = 12, *, centred: bool = False) -> Drawing:
    """The relation matrices of one batch: every layer of the student, untrained above trained, and the teacher's.

    Under each: Spearman's correlation with the teacher's, over the pairs. centred: less the matrix's mean over its pairs, which
    shows structure where all cosines are high.
    """
    rows = batch_of(view, batch, size)
    texts = [view.texts[i] for i in rows]
    vectors = view.vectors[TEACHER][rows]
    target = vectors @ vectors.T
    drawn = []
    for model in (UNTRAINED, TRAINED):
        layers = view.keep(("relations", model, *rows), partial(layer_relations, view.encoder(model), texts))
        shown = np.unique(np.linspace(0, len(layers) - 1, SEEN_AT_ONCE).round().astype(int))
        cells = [_relation(layers[i], target, texts, f"layer {i}", centred) for i in shown]
        cells.append(_relation(target, target, texts, TEACHER, centred))
        drawn.append(drawings.beside(cells, title=model))
    return drawings.stacked(drawn, title="Who is like whom, layer by layer, before and after training")


def _relation(values: np.ndarray, target: np.ndarray, texts: Sequence[str], title: str, centred: bool) -> Drawing:
    upper = np.triu_indices(len(values), 1)
    note = f"{relation_agreement(values, target):+.2f} with the teacher" if title != TEACHER else ""
    if centred and len(upper[0]):
        values = values - values[upper].mean()
    return drawings.matrix(values, texts, title=title, note=note)


def relation_agreement(values: np.ndarray, target: np.ndarray) -> float:
    """Spearman correlation of two relation matrices `[N, N]` over the pairs above the diagonal; 0 where one is constant."""
    from talas_lib import metrics

    upper = np.triu_indices(len(values), 1)
    if len(upper[0]) < 2 or np.ptp(target[upper]) == 0:
        return 0.0
    return metrics.spearman(values[upper], target[upper])[0]


# ---- a map


def map_points(view: View, model: str, how: str = LAYOUTS[0]) -> np.ndarray:
    """The view's sentences in two dimensions, `[n, 2]`, turned so that it lies as the teacher's map does (Procrustes).

    how: one of LAYOUTS, else TalasError. t-SNE takes seconds the first time.
    """
    if how not in LAYOUTS:
        raise TalasError(f"no map {how!r}. Accepted: {listed(LAYOUTS)}")
    if model not in view.vectors:
        raise TalasError(f"no model {model!r} to look at. Accepted: {listed(view.vectors)}")

    def flat(name: str) -> np.ndarray:
        return view.keep(("flat", name, how), lambda: flatten(view.vectors[name], how))

    points = flat(model)
    return points if model == TEACHER else turned_onto(points, flat(TEACHER))


def flatten(vectors: np.ndarray, how: str) -> np.ndarray:
    """Two numbers a row, centred and with a largest distance of 1 from the middle."""
    from talas_lib.reduction import principal_components

    if how == LAYOUTS[0]:
        fitted = principal_components(vectors, 2)
        points = (vectors - fitted.mean) @ fitted.directions
    else:
        from sklearn.manifold import TSNE

        nearby = min(30.0, (len(vectors) - 1) / 3)
        points = TSNE(2, perplexity=nearby, init="pca", metric="cosine", random_state=0).fit_transform(vectors)
    points = points.astype(np.float64) - points.mean(0)
    return points / max(float(np.linalg.norm(points, axis=1).max()), 1e-12)


def turned_onto(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Points `[n, 2]` under the rotation or reflection that brings them nearest to the target's (least squares)."""
    from scipy.linalg import orthogonal_procrustes

    return points @ orthogonal_procrustes(points, target)[0]


def corpus_map(view: View, model: str = TRAINED, how: str = LAYOUTS[0], query: str = "") -> Drawing:
    """The map as a drawing, a colour for each source; the query's ten nearest sentences under that model are ringed."""
    marked: list[int] = []
    if query.strip():
        cosines = view.vectors[model] @ view.encode(model, query.strip())
        marked = [int(i) for i in np.argsort(-cosines, kind="stable")[:10]]
    title = f"{len(view.texts)} sentences as the {model} places them ({how})"
    return drawings.scatter(map_points(view, model, how), view.texts, view.sources, title=title, marked=marked)


# ---- the perturbation


def ascents(view: View, kind: str = "asam") -> pd.DataFrame:
    """`ascent.ascent_by_rho` of the view's run with SAM or ASAM at the `radii`, computed once."""
    from talas_lib.explore import ascent
    from talas_lib.sharpness_aware import Perturbation

    own = view.run.params.optimizer_spec
    how = Perturbation(kind, 0.0, own.eta or 0.0, own.bias_mode or "abs") if kind == "asam" else Perturbation(kind)
    hill = view.keep(("uphill",), lambda: ascent.uphill(view.run))
    return view.keep(("ascents", kind), lambda: ascent.ascent_by_rho(hill, how, radii(view)))


def radii(view: View) -> list[float]:
    """The radii to look at, ascending, the run's own among them."""
    from talas_lib.explore import ascent

    own = view.run.params.optimizer_spec.rho
    return sorted({*ascent.RHOS, *([own] if own is not None else [])})


def effect_of_rho(view: View, rho: float = 0.5, kind: str = "asam") -> Drawing:
    """The table of `ascents` as three curves, with the chosen rho marked and its numbers in the title."""
    table = ascents(view, kind)
    at = int((table["rho"] - rho).abs().argmin())
    row, steps = table.iloc[at], [f"{value:g}" for value in table["rho"]]
    curves = {
        "Loss above that at w": {"measured": table["rise"], "first order": table["first order"]},
        "Length of eps, % of the weights'": {"||eps|| / ||w||": 100 * table["relative"]},
        "Turn of the gradient, degrees": {"between g(w + eps) and g(w)": table["turn"]},
        "Vectors moved, 1 - cosine": {"mean of the batch": table["moved"]},
    }
    panels = [
        drawings.lines(steps, {n: list(v) for n, v in series.items()}, title=title, xlabel="rho", at=at)
        for title, series in curves.items()
    ]
    said = (
        f"{kind.upper()}, rho {row['rho']:g}: the loss rises by {row['rise']:.4g} ({row['first order']:.4g} to first order), the"
        f" gradient turns by {row['turn']:.1f} degrees"
    )
    return drawings.beside(panels, title=said)


# ---- gains


def gains(run: runs.Run, suite: str, base: str = "the better untrained one") -> Drawing:
    """What training gained on each task of a suite that the run was scored on, in points, against one of `bases`.

    TalasError for a suite it was not scored on.
    """
    record = run.evaluation(suite)
    if record is None:
        raise TalasError(
            f"run {run.id} has no scores on {suite!r}. There are: {listed(run.evaluations())};"
            " notebooks/04_evaluate.ipynb makes them"
        )
    references = record["references"]
    better = max(("untrained_cls", "untrained_mean"), key=lambda name: references[name]["avg"])
    name = bases()[base] or better
    against = references[name]
    values = {task: row["score"] - against["tasks"][task]["score"] for task, row in record["tasks"].items()}
    notes = {
        task: f"{task}, {row['metric']}: {row['score']:.1f} trained, {against['tasks'][task]['score']:.1f} {base},"
        f" {references['teacher']['tasks'][task]['score']:.1f} teacher"
        for task, row in record["tasks"].items()
    }
    values["average"] = record["avg"] - against["avg"]
    notes["average"] = f"average: {record['avg']:.1f} trained, {against['avg']:.1f} {base}"
    better_on = sum(value > 0 for task, value in values.items() if task != "average")
    title = (
        f"{suite}: {values['average']:+.1f} points on average against {base}, better on {better_on} of {len(notes) - 1}"
    )
    return drawings.bars(values, notes, title=title)


def bases() -> dict[str, str | None]:
    """What a gain can be counted against, and its name in the record; None: to be chosen."""
    return {
        "the better untrained one": None,
        "untrained, CLS pooling": "untrained_cls",
        "untrained, mean pooling": "untrained_mean",
        "the teacher": "teacher",
    }
