"""What a run reads of its teachers, from resolved parameters: sentence vectors of each, token states of the first.

Vectors are computed whenever they are missing, and so are token alignments, which need no teacher, only its tokenizer. Token
states are many times larger; notebook 02 alone builds them, after it has said how large they will be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import display, fitting, methods, paths, sources, teacher_cache
from talas_lib.errors import TalasError

if TYPE_CHECKING:
    from talas_lib.alignment_cache import Alignment
    from talas_lib.corpora import Corpus
    from talas_lib.encoders import Encoder
    from talas_lib.params import ResolvedParams, TeacherSpec
    from talas_lib.teacher_cache import TeacherCache
    from talas_lib.token_cache import TokenCache

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Caches:
    """What is there of the teachers: vectors, one cache a teacher in order; of the first, None unless they are read, token
    states and which of its tokens are the student's.
    """

    vectors: tuple[TeacherCache, ...] = ()
    tokens: TokenCache | None = None
    alignment: Alignment | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each teacher's vectors."""
        return tuple(cache.dim for cache in self.vectors)

    @property
    def key(self) -> str | None:
        """The caches' folder names with `+` between them; None without any."""
        return "+".join(cache.folder.name for cache in self._all) or None

    @property
    def seconds(self) -> float:
        """Time the encoding and the alignment took when the caches were built."""
        return sum(cache.seconds for cache in self._all)

    @property
    def _all(self) -> list[TeacherCache | TokenCache | Alignment]:
        return [cache for cache in (*self.vectors, self.tokens, self.alignment) if cache is not None]


def open_caches(p: ResolvedParams, corpus: Corpus, *, progress: Progress | None = None) -> Caches:
    """What training with these parameters reads; missing vectors and alignments are computed.

    TalasError before any teacher is loaded when the method does not fit the student, or when token states are read and not
    there; and when the teacher's sentence vectors have another width than its token states.
    """
    if not p.needs_teacher or methods.builds_student(p.method):
        return Caches()
    fitting.check(p)
    tokens = open_tokens(p, corpus)
    count = len(p.teacher_specs)
    vectors = tuple(
        cache_teacher(p, corpus, spec, progress=progress and _part(progress, number, count))
        for number, spec in enumerate(p.teacher_specs)
    )
    if tokens is not None and tokens.dim != vectors[0].dim:
        raise TalasError(
            f"method {p.method} compares token states, and teacher {p.teacher_spec.name} has them {tokens.dim} wide but sentence"
            f" vectors {vectors[0].dim} wide, from a module behind its pooling; take a method that reads vectors alone"
        )
    return Caches(vectors, tokens, _alignment(p, corpus))


def _part(progress: Progress, number: int, count: int) -> Progress:
    """Progress of one teacher out of `count`, all of which read the same texts, as part of the whole."""
    return lambda done, total: progress(number * total + done, count * total)


def cache_teacher(
    p: ResolvedParams, corpus: Corpus, spec: TeacherSpec | None = None, *, progress: Progress | None = None
) -> TeacherCache:
    """Vectors of the corpus by a teacher, the first of `p` by default: opened when they are there, else computed.

    The teacher is loaded only if needed.
    """
    spec = spec or p.teacher_spec
    identity = sources.teacher_identity(spec, precision=p.precision)
    load = _loader(p, spec)

    def embed(texts: Any) -> np.ndarray:
        return load().encode(texts, precision=p.precision)

    return teacher_cache.build(paths.cache_dir(), identity, corpus.texts, embed, progress=progress)


def _loader(p: ResolvedParams, spec: TeacherSpec) -> Callable[[], Encoder]:
    """The teacher, loaded at the first call."""
    loaded: list[Encoder] = []

    def load() -> Encoder:
        if not loaded:
            loaded.append(sources.load_teacher(spec, device=sources.pick_device(p.device)))
        return loaded[0]

    return load


# ---- token states


def cache_tokens(p: ResolvedParams, corpus: Corpus, *, progress: Progress | None = None) -> TokenCache | None:
    """The first teacher's token states that the method reads, computed where they are missing; None for other methods."""
    from talas_lib import token_cache

    if not p.needs.token_cache:
        return None
    return token_cache.build(
        paths.cache_dir(),
        _token_identity(p),
        corpus.texts,
        p.needs,
        _loader(p, p.teacher_spec),
        precision=p.precision,
        progress=progress,
    )


def open_tokens(p: ResolvedParams, corpus: Corpus) -> TokenCache | None:
    """The token states that the method reads; None for a method that reads none.

    TalasError with the command that builds them when they are not there.
    """
    from talas_lib.token_cache import TokenCache

    if not p.needs.token_cache:
        return None
    found = TokenCache.open(paths.cache_dir(), _token_identity(p), corpus.texts, p.needs)
    if found is None:
        raise TalasError(
            f"method {p.method} reads token states of teacher {p.teacher_spec.name}, and they are not cached for this corpus."
            f" Build them first:\n{token_command(p)}"
        )
    return found


def token_command(p: ResolvedParams) -> str:
    """The papermill call of notebook 02 that builds the token states these parameters read."""
    named = {"method": p.method} if p.teachers else {"method": p.method, "teacher": p.teacher}
    return display.next_command("02_cache_teacher", **(p.given_values() | named))


def token_estimate(p: ResolvedParams, corpus: Corpus) -> dict[str, Any] | None:
    """How large the token states will be, from the tokenizer alone: {signals, tokens, bytes}; None when none are read."""
    from talas_lib import token_cache
    from talas_lib.cache_files import distinct_texts

    if not p.needs.token_cache:
        return None
    lengths = sources.load_tokenizer(p.teacher_spec).tokenize(distinct_texts(corpus.texts)[0]).lengths
    dim, _ = sources.shape(p.teacher_spec)
    return {
        "signals": [signal.name for signal in token_cache.signals(p.needs)],
        "tokens": int(lengths.sum()),
        "bytes": token_cache.estimate(lengths, dim, p.needs),
    }


def _alignment(p: ResolvedParams, corpus: Corpus) -> Alignment | None:
    """Which tokens of student and first teacher correspond; None for a method that does not ask."""
    from talas_lib import alignment_cache

    kind = p.needs.alignment
    if kind is None:
        return None
    student, teacher = sources.load_tokenizer(p.student_spec), sources.load_tokenizer(p.teacher_spec)
    return alignment_cache.build(paths.cache_dir(), kind, student, teacher, corpus.texts)


def _token_identity(p: ResolvedParams) -> dict[str, Any]:
    return sources.teacher_identity(p.teacher_spec, precision=p.precision)
