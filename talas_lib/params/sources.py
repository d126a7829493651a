"""Where a model or a corpus comes from on this machine, whether it can be had, and what it is by content.

Order: a local folder (the spec's source, or TALAS_ASSETS/<name>), then a package, then the hub. Nothing here
downloads or imports torch; the only network use is one short connection attempt for a hub model that is not
in the local hub cache.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talas_lib import paths
from talas_lib.asset_registry import ASSETS
from talas_lib.corpora.split_files import local_file, missing
from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.params.specs import ARCHITECTURES, CorpusPart, CorpusSpec, StudentSpec, TeacherSpec
from talas_lib.texts import columns_of

ModelSpec = TeacherSpec | StudentSpec
HUB_TIMEOUT_S = 3.0
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ASSET = re.compile(r"[\w.-]+")
_GRAMMAR = "package:<asset>, hub:<owner/name>, tiny:<architecture>, or a folder (absolute, or starting with . or ~)"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class ResolvedSource:
    """What a spec's source means here. path: of a local folder; asset: of a package; arch and seed: of a tiny
    model; hub_id and revision: of a hub model, and of the hub copy behind a package.
    """

    kind: Literal["local", "package", "tiny", "hub"]
    path: Path | None = None
    asset: str = ""
    arch: str = ""
    seed: int = 0
    hub_id: str = ""
    revision: str | None = None


def parse_source(source: str, where: str) -> tuple[str, str]:
    """(scheme, rest) of a source, scheme one of package, hub, tiny and local.

    Raises TalasError that begins with `where` for a source outside the grammar.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "tiny":
        arch, _, seed = rest.partition("@")
        if arch in ARCHITECTURES and (seed or "0").isdecimal():
            return scheme, rest
        raise TalasError(
            f"{where}: {source!r} names no tiny model.{did_you_mean(arch, ARCHITECTURES)}"
            f" Accepted: tiny:<architecture>[@seed] with {listed(ARCHITECTURES)}"
        )
    if (scheme == "package" and _ASSET.fullmatch(rest)) or (scheme == "hub" and _HUB_ID.fullmatch(rest)):
        return scheme, rest
    if source.startswith((".", "~")) or Path(source).is_absolute():
        return "local", source
    hub = f"hub:{source} for a hub model, " if _HUB_ID.fullmatch(source) else ""
    raise TalasError(f"{where}: {source!r} is none of {_GRAMMAR}. Write {hub}./{source} for a folder")


def resolve_source(spec: ModelSpec) -> ResolvedSource:
    """The source of a teacher or student, by the order above. Raises TalasError for a source outside the grammar."""
    scheme, rest = parse_source(spec.source, f"source of {spec.name}")
    if scheme == "tiny":
        arch, _, seed = rest.partition("@")
        return ResolvedSource("tiny", arch=arch, seed=int(seed or 0))
    if scheme == "local":
        return ResolvedSource("local", path=paths.locate(rest))
    local = _local_copy(rest if scheme == "package" else spec.name)
    if local is not None:
        return local
    if scheme == "package":
        return ResolvedSource("package", asset=rest, hub_id=spec.hub_id or "", revision=spec.revision)
    return ResolvedSource("hub", hub_id=rest, revision=spec.revision)


def _local_copy(name: str) -> ResolvedSource | None:
    assets = paths.assets_dir()
    if assets is not None and (assets / name / "config.json").is_file():
        return ResolvedSource("local", path=assets / name)
    return None


def check_available(spec: ModelSpec | CorpusSpec) -> None:
    """Raises TalasError when a model or corpus cannot be had here, saying how it could. Never downloads.

    A hub model or data set counts as available when the local hub cache holds it, or when the hub answers
    within HUB_TIMEOUT_S. A corpus's table must have the columns that are to be read.
    """
    if isinstance(spec, CorpusSpec):
        _check_corpus(spec)
        return
    source = resolve_source(spec)
    if source.kind == "local":
        _check_folder(spec, source.path)
    if source.kind == "package" and source.asset not in ASSETS:
        guess = did_you_mean(source.asset, ASSETS)
        raise TalasError(f"{_role(spec)} {spec.name!r}: no package {source.asset!r}.{guess} Accepted: {listed(ASSETS)}")
    if source.kind == "hub":
        _check_hub(spec, source)


def corpus_path(spec: CorpusSpec) -> Path:
    """The file of a `local` or `file` corpus. Raises TalasError when it is not there."""
    assert spec.path is not None
    if spec.kind == "file":
        path = paths.locate(spec.path)
        way_out = "correct the path; a relative one counts from the current folder, then from the project folder"
    else:
        data = paths.data_dir()
        if data is None:
            raise TalasError(
                f"corpus {spec.name!r} is local data: set TALAS_DATA to the folder that holds {spec.path},"
                " or use a corpus that needs none (mini, tiny), or a file of yours: `-p corpus"
                " ./sentences.csv`"
            )
        path, way_out = data / spec.path, f"it should lie below TALAS_DATA ({data})"
    if not path.is_file():
        raise TalasError(f"corpus {spec.name!r}: no file {path}; {way_out}")
    return path


def part_file(spec: CorpusSpec, part: CorpusPart) -> Path | None:
    """The local file of a built corpus's part, None where the hub's data set takes its place. TalasError without either."""
    data = paths.data_dir()
    file = local_file(data, part.place, part.split)
    if file is None and part.hub is None:
        raise TalasError(
            f"corpus {spec.name!r}, part {part.name}: {missing(data, part.place, f'{part.split}.jsonl.gz')}, or give it a `hub`"
        )
    return file


def _check_corpus(spec: CorpusSpec) -> None:
    if spec.kind in ("local", "file"):
        _check_columns(spec, corpus_path(spec))
    for part in spec.parts:
        if part_file(spec, part) is None and part.hub is not None and not _hub_table_cached(part.hub.id):
            why = _why_no_hub()
            if why:
                raise TalasError(
                    f"corpus {spec.name!r}, part {part.name}: {part.hub.id} is not in the local cache of data sets, and {why};"
                    f" and {missing(paths.data_dir(), part.place, f'{part.split}.jsonl.gz')}"
                )


def _check_columns(spec: CorpusSpec, path: Path) -> None:
    """TalasError when the table's first record lacks a column that was asked for; `source` alone may be absent."""
    found = columns_of(path) if spec.has_columns else None
    asked = {"text_column": spec.text_column, "source_column": spec.source_column}
    for name, column in asked.items():
        if found is not None and column not in found and (name, column) != ("source_column", "source"):
            raise TalasError(
                f"corpus {spec.name!r}: {path} has no column {column!r}.{did_you_mean(column, found)} It has {listed(found)}."
                f" Choose one with `-p {name} ...`, or with `{name}:` in a file of params/corpora"
            )


def _hub_table_cached(hub_id: str) -> bool:
    """Whether `datasets` has kept the data set; without its configuration, which is slow to import."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return (cache / hub_id.replace("/", "___")).is_dir()


def _role(spec: ModelSpec) -> str:
    return "teacher" if isinstance(spec, TeacherSpec) else "student"


def _ways_out(spec: ModelSpec) -> str:
    role = _role(spec)
    if not (
        paths.params_dir() / f"{role}s" / f"{spec.name}.yaml"
    ).is_file():  # a folder that was given in a name's place
        return (
            f"Give a folder that SentenceTransformer(...) loads, with safetensors weights: `-p {role} ./my_{role}`; a relative"
            " path counts from the current folder, then from the project folder"
        )
    return (
        f"Point at a local folder: `-p {role}_source /path/to/folder`, or `source: /path/to/folder` in"
        f" params/{role}s/{spec.name}.yaml, or put the files in $TALAS_ASSETS/{spec.name}/"
    )


def _check_folder(spec: ModelSpec, folder: Path | None) -> None:
    assert folder is not None
    role = _role(spec)
    if not folder.is_dir():
        raise TalasError(f"{role} {spec.name!r}: no folder {folder}. {_ways_out(spec)}")
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        why = (
            "it holds a PEFT adapter: merge it into its base model and save that"
            if adapter
            else "a transformers model needs one"
        )
        raise TalasError(f"{role} {spec.name!r}: {folder} has no config.json; {why}. {_ways_out(spec)}")
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise TalasError(f"{role} {spec.name!r}: {folder} has no weights ({' or '.join(WEIGHTS)}). {_ways_out(spec)}")
    from talas_lib.model_folders import check_kind

    check_kind(folder)


def _check_hub(spec: ModelSpec, source: ResolvedSource) -> None:
    if in_hub_cache(source.hub_id, source.revision):
        return
    role, why = _role(spec), _why_no_hub()
    if why:
        raise TalasError(
            f"{role} {spec.name!r} ({source.hub_id}) is not in the local hub cache, and {why}."
            f" {_ways_out(spec)}."
            f" {role.capitalize()}s that need no hub: {listed(_without_hub(role))}"
        )


def _why_no_hub() -> str | None:
    """Why the hub cannot be asked, None if it can."""
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_true(os.environ.get(name))]
    return f"{offline[0]} is set" if offline else _no_connection(*_hub_address())


def in_hub_cache(hub_id: str, revision: str | None) -> bool:
    """Whether the local hub cache holds the model's config and weights at that revision (None: main)."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision or "main")
    if not isinstance(config, (str, os.PathLike)):
        return False
    return any(True for pattern in WEIGHTS for _ in Path(config).parent.glob(pattern))


def _hub_address() -> tuple[str, int]:
    """Host and port to try: the hub's, or the proxy's where one is set."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    target = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(target.scheme or "https")
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return target.hostname or "huggingface.co", target.port or (80 if target.scheme == "http" else 443)


def _no_connection(host: str, port: int) -> str | None:
    """Why no connection came about within HUB_TIMEOUT_S, None if one did. A thread bounds the name look-up as well."""
    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=HUB_TIMEOUT_S).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(f"{host}:{port} cannot be reached ({error})")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return outcome[0] if outcome else f"{host}:{port} did not answer within {HUB_TIMEOUT_S:g} s"


def _is_true(value: str | None) -> bool:
    return (value or "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def _without_hub(role: str) -> list[str]:
    pattern = re.compile(r"^source:\s*['\"]?(?:package|tiny):", re.MULTILINE)
    files = sorted((paths.params_dir() / f"{role}s").glob("*.yaml"))
    return [path.stem for path in files if pattern.search(path.read_text(encoding="utf-8"))]
