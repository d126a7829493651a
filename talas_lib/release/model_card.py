"""The model card of a run's student: README.md of its folder, written from what the run has on record.

What was not measured is not in it. A later stage (scores, agreement, ONNX) writes the card again with what it has added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from talas_lib import methods, model_folders
from talas_lib.files import atomic_write_text

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams, StudentSpec, TeacherSpec
    from talas_lib.runs import Run

README = "README.md"
METRICS = {
    "macro_f1": "macro-F1 of a logistic regression on the vectors of the training split",
    "average_precision": "average precision of pairs ranked by cosine",
    "spearman": "Spearman correlation of the cosine with people's judgements",
    "ndcg_at_10": "nDCG@10 of documents ranked by cosine",
    "v_measure": "V-measure of k-means, five seeds",
    "r2": "R^2 of a ridge regression",
}
_SCORED = {
    "this student": None,
    "untrained, CLS": "untrained_cls",
    "untrained, mean": "untrained_mean",
    "teacher": "teacher",
}


def write(run: Run, trained: Mapping[str, Any] | None = None) -> Path:
    """Write the card into the run's model folder, and into its export where there is one, unless it says the same; returns
    the former's.

    trained: the record of training, None for the one on file.
    """
    for place in (run.folder / "model", run.folder / "export"):
        if place.is_dir():
            card, file = text(run, trained, exported=place.name == "export"), place / README
            if not file.is_file() or file.read_text(encoding="utf-8") != card:
                atomic_write_text(file, card)
    return run.folder / "model" / README


def text(run: Run, trained: Mapping[str, Any] | None = None, *, exported: bool = False) -> str:
    """The card: front matter, use, making, scores, agreement, sizes, intended use, limits, licences.

    exported: whether it is for the export, whose vectors may be shorter than the student's.
    """
    trained = trained or run.read_record("train") or {}
    p, scored = run.params, run.evaluations()
    parts = [
        _front_matter(run, scored),
        [f"# {run.id}", "", f"{_origin(p)} on the corpus {p.corpus_spec.name}, without labels.", ""],
        _how_to_use(run, trained),
        _shortened(run) if exported else [],
        _making(run, trained),
        _scores(scored),
        _agreement(run),
        _export(run),
        _uses(p, trained),
        _licences(p),
    ]
    return "\n".join(line for part in parts for line in part)


def _front_matter(run: Run, scored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the hub reads; nothing that is not known."""
    p = run.params
    values: dict[str, Any] = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    licence = _licence(p.student_spec)
    if licence:
        values["license"] = licence.lower()
    if p.student_spec.hub_id:
        values["base_model"] = p.student_spec.hub_id
    values["tags"] = ["sentence-transformers", "feature-extraction", "distillation", "talas"]
    results = [
        {
            "task": {"type": row["kind"], "name": row["kind"]},
            "dataset": {"type": task, "name": f"{task} (suite {suite})"},
            "metrics": [{"type": row["metric"], "value": round(row["score"], 2)}],
        }
        for suite, record in scored.items()
        for task, row in record["tasks"].items()
    ]
    if results:
        values["model-index"] = [{"name": run.id, "results": results}]
    return ["---", yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000).strip(), "---"]


def _origin(p: ResolvedParams) -> str:
    how = p.method if methods.builds_student(p.method) else f"{p.method} with {p.optimizer}"
    if not p.needs_teacher:
        return f"A sentence encoder trained with talas from `{p.student}` by {how},"
    return f"A sentence encoder distilled with talas from `{p.teacher_names}` into `{p.student}` by {how},"


def _how_to_use(run: Run, trained: Mapping[str, Any]) -> list[str]:
    own = model_folders.needs_talas(run.folder / "model")
    width = f" of {trained['dim']} numbers" if trained.get("dim") else ""
    vector = f"The vector{width} is the {trained.get('pooling')} pooling of the last layer"
    if trained.get("output") == "static":
        vector = (
            f"The vector{width} is the mean of the sentence's token vectors, read from a table; there is no transformer"
        )
    elif trained.get("output") == "projected":
        vector += ", put through the module that the method trained with it and that stays in this folder"
    return [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        f'model = SentenceTransformer("path/to/{run.id}"{", trust_remote_code=True" if own else ""})',
        'vectors = model.encode(["a first sentence", "a second one"])',
        "```",
        "",
        f"{vector}. It is not normalised; compare by cosine.",
        "",
        *(["That module comes from the package `talas_lib`, which has to be installed.", ""] if own else []),
    ]


def _shortened(run: Run) -> list[str]:
    """What an export has done to the vectors."""
    dim = (run.read_record("export") or {}).get("dim")
    if dim is None:
        return []
    return [
        f"**In this folder the vectors have {dim} numbers:** those of the student, centred and rotated onto the {dim} principal"
        " directions of its training sentences, by a last module that is a plain linear layer. The scores below are those of the"
        " student's own vectors; the table of shorter vectors says what became of the agreement.",
        "",
    ]


def _making(run: Run, trained: Mapping[str, Any]) -> list[str]:
    """Teacher, student, data and settings."""
    p = run.params
    rows = [("teacher", _model(spec)) for spec in (p.teacher_specs if p.needs_teacher else ())]
    layers = p.student_spec.layers
    rows.append(("started from", _model(p.student_spec) + (f", blocks {list(layers)}" if layers else "")))
    sentences = f"{trained['sentences']:,} sentences" if "sentences" in trained else "sentences"
    sha256 = f", sha256 {trained['corpus_sha256'][:12]}" if "corpus_sha256" in trained else ""
    about = f" ({p.corpus_spec.description})" if p.corpus_spec.description else ""
    rows.append(("data", f"{p.corpus_spec.name}{about}: {sentences} without labels{sha256}"))
    if not methods.builds_student(p.method):
        rows.append(("method", f"{p.method} with {p.optimizer}"))
        schedule = f"{p.epochs} epochs, batches of {p.batch_size}, learning rate {p.lr:g}, seed {p.seed}, {p.precision}"
        rows.append(("training", schedule + (f", {trained['steps']:,} steps" if "steps" in trained else "")))
    rows.append(("reads", f"at most {p.student_spec.max_length} tokens of a text"))
    versions = run.manifest.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    return ["## How it was made", "", *_table(("", ""), rows, numbers=False)]


def _model(spec: TeacherSpec | StudentSpec) -> str:
    """A model by name, with the hub's name and revision, pooling and licence where they are known."""
    known = [f"[{spec.hub_id}](https://huggingface.co/{spec.hub_id})" if spec.hub_id else None]
    known.append(f"revision {spec.revision[:12]}" if spec.revision else None)
    known.append("pooled as its folder says" if spec.pooling == "auto" else f"pooling {spec.pooling}")
    prompt = getattr(spec, "prompt", "")  # a student has none
    known.append(f"prompt {prompt!r}" if prompt else None)
    return f"`{spec.name}` ({', '.join(item for item in known if item)})"


# ---- what was measured


def _scores(scored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Scores", ""]
    if not scored:
        return [*lines, "Not scored on tasks yet.", ""]
    for suite, record in scored.items():
        models = {label: record if name is None else record["references"][name] for label, name in _SCORED.items()}
        rows = [
            (task, row["metric"], f"{row['n']:,}", *(_number(m["tasks"][task]["score"]) for m in models.values()))
            for task, row in record["tasks"].items()
        ]
        rows.append(("average", "", "", *(_number(m["avg"]) for m in models.values())))
        about = record["suite"]
        lines += [f"Suite `{suite}`, protocol `{about['protocol']}`, vectors computed in {about['precision']}:", ""]
        lines += _table(("task", "metric", "n", *models), rows)
    used = {row["metric"] for record in scored.values() for row in record["tasks"].values()}
    metrics = "; ".join(f"`{name}`: {METRICS.get(name, name)}" for name in METRICS if name in used)
    return [
        *lines,
        "**How it was evaluated.** Scores are on a 0 to 100 scale, from frozen vectors, on `n` rows of each task's test split."
        " They are those of one run with one seed: a difference of a point between models may be chance. The untrained student"
        " is the one this one started from; a gain is counted against the better of its two rows.",
        f"{metrics}.",
        "",
    ]


def _agreement(run: Run) -> list[str]:
    from talas_lib import agreement

    record = run.read_record("agreement")
    if record is None:
        return []
    lines = ["## Agreement with the teacher on sentences it has not seen", ""]
    for teacher in record["teachers"]:
        found = agreement.table(record, teacher)
        rows = [(label, *map(_number, row)) for label, row in zip(found.index, found.to_numpy(), strict=True)]
        lines += [f"With `{teacher}`:", "", *_table(("model", *found.columns), rows)]
    return [
        *lines,
        f"{record['sentences']:,} sentences that were kept out of training, 0 to 100, no labels. Chance would share"
        f" {record['chance_overlap']:.1f} of 100 neighbours. Agreement is no quality: where the teacher is wrong, a student that"
        " agrees is wrong with it.",
        "",
    ]


def _export(run: Run) -> list[str]:
    """Other forms of the model, and shorter vectors."""
    record = run.read_record("export") or {}
    lines: list[str] = []
    if record.get("forms"):
        columns = {"size_mb": "MB", "smallest_cosine": "smallest cosine", "pair_spearman": "order of pairs", **_MS}
        rows = [
            (name, *(_number(row.get(key), 4 if "cosine" in key else 2) for key in columns))
            for name, row in record["forms"].items()
        ]
        lines += ["## Forms", "", *_table(("form", *columns.values()), rows), _FORMS_NOTE.format(**record), ""]
    if record.get("widths"):
        names = [name for name in ("pair_spearman", "overlap_at_10", "avg") if name in record["widths"][0]]
        rows = [(str(row["width"]), row["how"], *(_number(row[name]) for name in names)) for row in record["widths"]]
        lines += ["## Shorter vectors", "", *_table(("width", "how", *(_WIDTHS[name] for name in names)), rows)]
        lines += [_WIDTHS_NOTE.format(**record), ""]
    return lines


_MS = {"ms_one": "ms a sentence, alone", "ms_many": "ms a sentence, many"}
_WIDTHS = {"pair_spearman": "order of pairs", "overlap_at_10": "neighbours shared", "avg": "average of the suite"}
_FORMS_NOTE = (
    "Vectors of each form against those of the trained student, on {texts} texts ({kind}). Milliseconds are those of one machine"
    " with {threads} threads and short texts."
)
_WIDTHS_NOTE = (
    "`first`: the first numbers of the vector alone (`SentenceTransformer(..., truncate_dim=...)`); `principal`: centred, then"
    " rotated onto the principal directions of the training sentences. Against the whole vectors of the teacher, on {texts} texts"
    " ({kind})."
)


# ---- what cannot be measured


def _uses(p: ResolvedParams, trained: Mapping[str, Any]) -> list[str]:
    sentences = f"{trained['sentences']:,}" if "sentences" in trained else "its"
    taught = "It has learned to place texts as its teacher does and inherits the teacher's mistakes and biases. "
    return [
        "## Intended use",
        "",
        "Vectors of short texts like those of its corpus, for search, clustering, finding duplicates, or as the input of a small"
        " classifier. Texts and queries must be encoded by the same model: its vectors cannot be compared with the teacher's"
        " unless their width and the method say so.",
        "",
        "## Limits",
        "",
        f"{taught if p.needs_teacher else ''}It has seen {sentences} sentences of one corpus; on texts of another kind, in other"
        f" languages or much longer ones it may do worse than the numbers above, and what lies behind token"
        f" {p.student_spec.max_length} is not read. A cosine is no probability: a threshold that served another model has to be"
        " chosen anew. No test for bias was made; decisions about people need more than this.",
        "",
    ]


def _licences(p: ResolvedParams) -> list[str]:
    unknown = "not recorded; see its own page"
    rows = [("weights it started from", p.student, _licence(p.student_spec) or unknown)]
    rows += [("teacher", spec.name, _licence(spec) or unknown) for spec in (p.teacher_specs if p.needs_teacher else ())]
    rows.append(("training sentences", p.corpus_spec.name, "that of their owner; none of them are in this folder"))
    return [
        "## Licences",
        "",
        *_table(("what", "name", "licence"), rows, numbers=False),
        "The licence in the head of this file is that of the weights it started from. Whoever publishes this model checks that"
        " the teacher's and the data's terms allow it.",
        "",
        "Method: TALAS (Dao, Nguyen, Pham et al., arXiv 2606.21851).",
        "",
    ]


def _licence(spec: TeacherSpec | StudentSpec) -> str | None:
    """As the params file says, else as the front matter of a local folder's README does."""
    if spec.licence or not spec.source.startswith(("/", ".", "~")):
        return spec.licence
    file = Path(spec.source).expanduser() / README
    try:
        _, head, _ = file.read_text(encoding="utf-8").split("---", 2)
        found = yaml.safe_load(head).get("license")
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None
    return str(found) if found else None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """A table in Markdown; with numbers, columns after the second are set to the right."""
    rules = ["---" if not numbers or i < 1 else "---:" for i in range(len(head))]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, *rows)]
    return [f"| {lines[0]} |", f"| {' | '.join(rules)} |", *(f"| {line} |" for line in lines[1:]), ""]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
