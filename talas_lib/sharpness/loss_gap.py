"""The loss of a run's objective on sentences that it has not trained on, beside the training loss."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talas_lib import sources, stages
from talas_lib.corpora import hold_out
from talas_lib.errors import TalasError
from talas_lib.fixed_objective import fixed_rows
from talas_lib.methods.base import Objective
from talas_lib.texts import hash_order

if TYPE_CHECKING:
    from talas_lib.corpora import Corpus
    from talas_lib.params import ResolvedParams
    from talas_lib.training_data import TrainingData


def unseen_corpus(p: ResolvedParams, count: int) -> Corpus | None:
    """At most `count` distinct sentences of the run's corpus that it has not trained on; the same for all its runs.

    They are what `max_sentences` and `hold_out` left over; a packaged or tiny corpus is drawn larger where that is too little,
    and a file read without its own limit. Texts are compared by letters and digits. None when there is not a single one.
    """
    trained, spec = stages.load_corpus(p), p.corpus_spec
    drawn = spec.kind in ("packaged", "tiny")
    pool = sources.load_corpus(spec if drawn else spec.model_copy(update={"sentences": None}))
    fresh = hold_out.unseen(pool, trained)
    if drawn and len(fresh) < count:
        larger = spec.model_copy(update={"sentences": len(pool) + count})
        with contextlib.suppress(TalasError):  # the package has no more
            pool = sources.load_corpus(larger)
            fresh = hold_out.unseen(pool, trained)
    chosen = set(hash_order(fresh, f"unseen-{spec.seed}")[:count])
    first = {text: row for row, text in reversed(list(enumerate(pool.texts))) if text in chosen}
    return pool.rows(sorted(first.values())) if first else None


def loss_gap(
    objective: Objective, p: ResolvedParams, data: TrainingData, *, batches: int, batch_size: int, seed: int
) -> dict[str, Any] | None:
    """The mean loss on unseen sentences less that on as many training sentences, in batches of one size, dropout off.

    data: of the training corpus. Returns train_loss, held_out_loss, gap, batches, sentences and the sha256 of the unseen texts;
    None where there is no whole batch of them. The teacher encodes them once (see caching.cache_teacher).
    """
    corpus = unseen_corpus(p, batches * batch_size)
    count = 0 if corpus is None else len(corpus) // batch_size
    if corpus is None or count == 0:
        return None
    stages.cache_tokens(p, corpus)
    own = stages.training_data(p, objective.student, corpus, stages.open_caches(p, corpus))
    train_loss = mean_loss(objective, data, fixed_rows(len(data), count, batch_size, seed))
    held_out_loss = mean_loss(objective, own, fixed_rows(len(own), count, batch_size, seed))
    return {
        "train_loss": train_loss,
        "held_out_loss": held_out_loss,
        "gap": held_out_loss - train_loss,
        "batches": count,
        "sentences": count * batch_size,
        "sha256": corpus.sha256,
    }


@torch.no_grad()
def mean_loss(objective: Objective, data: TrainingData, rows: np.ndarray) -> float:
    """The objective in evaluation mode, averaged over the batches of these rows, `[batches, batch_size]`."""
    student, heads = objective.student, objective.method.heads
    student.eval()
    heads.to(student.device).eval()
    return float(np.mean([float(objective(data.batch(batch, student.device))[0]) for batch in rows]))
