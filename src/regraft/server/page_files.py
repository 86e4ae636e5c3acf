"""The page at ``/``: its files, which are served as they are, and what it shows of adapters' directories.

Nothing of it comes from another host, and its policy lets nothing of another host in.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.responses import Response

from regraft.errors import RegraftError
from regraft.evaluate.report_card import REPORT_CARD_NAME, read_report_card
from regraft.formats.adapter.peft_directory import WEIGHTS_NAME
from regraft.formats.adapter.record import read_record
from regraft.server.catalogue import Listed
from regraft.server.errors import ApiError
from regraft.storage import file_sha256

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page:
    """The files, read once, and what is known of adapters' directories, read once for each version."""

    def __init__(self) -> None:
        files = [Path(str(entry)) for entry in resources.files("regraft.server").joinpath("page").iterdir()]
        self._files = {file.name: file.read_bytes() for file in files if file.suffix in _KINDS}
        self._known: dict[Listed, dict[str, Any]] = {}

    def file(self, name: str) -> Response:
        """One of the files.

        Raises:
            ApiError: 404: there is none of that name.
        """
        if name not in self._files:
            raise ApiError(404, "There is no such file.", code="not_found")
        return Response(self._files[name], headers=_HEADERS, media_type=_KINDS[Path(name).suffix])

    def describe(self, listed: Iterable[Listed]) -> list[dict[str, Any]]:
        """Adapters, each with its report card; reads files, so not for an event loop."""
        self._known = {each: self._known.get(each) or _described(each) for each in listed}
        served = {about["sha256"]: about["name"] for about in self._known.values() if not about["is_recovered"]}
        return [
            {key: value for key, value in about.items() if key not in ("sha256", "parent_sha256")}
            | {"plugged_in": served.get(about["parent_sha256"])}
            for about in self._known.values()
        ]


def _described(listed: Listed) -> dict[str, Any]:
    """What an adapter's files say; what cannot be read is as if it were not there."""
    about: dict[str, Any] = {
        "name": listed.name,
        "is_recovered": False,
        "parent": None,
        "parent_sha256": None,
        "sha256": None,
        "bytes": 0,
        "card": None,
    }
    try:
        about["bytes"] = sum(file.stat().st_size for file in listed.path.glob("*.safetensors"))
        record = read_record(listed.path)
        about["is_recovered"] = record is not None
        if record is not None and record.parent is not None:
            about["parent"], about["parent_sha256"] = record.parent.name, record.parent.sha256
        if (listed.path / WEIGHTS_NAME).exists():
            about["sha256"] = file_sha256(listed.path / WEIGHTS_NAME)
        if (listed.path / REPORT_CARD_NAME).exists():
            about["card"] = read_report_card(listed.path).model_dump(mode="json", exclude={"settings"})
    except (RegraftError, OSError):
        pass
    return about
