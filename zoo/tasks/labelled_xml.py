"""Rows from the hand-labelled XML of usaddress (MIT) and probablepeople (MIT): text in, JSON of its parts out."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from zoo.packages import fetch, read_member

Row = dict[str, str]

ADDRESS_FIELDS = {
    "Recipient": "recipient",
    "BuildingName": "building",
    "LandmarkName": "building",
    "SubaddressType": "unit",
    "SubaddressIdentifier": "unit",
    "AddressNumber": "number",
    "AddressNumberSuffix": "number",
    "StreetNamePreDirectional": "direction",
    "StreetNamePreType": "street",
    "StreetName": "street",
    "StreetNamePostType": "type",
    "StreetNamePostDirectional": "direction",
    "OccupancyType": "unit",
    "OccupancyIdentifier": "unit",
    "USPSBoxType": "box",
    "USPSBoxID": "box",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip",
    "CountryName": "country",
}
NAME_FIELDS = {
    "PrefixMarital": "title",
    "PrefixOther": "title",
    "GivenName": "first",
    "FirstInitial": "first",
    "MiddleName": "middle",
    "MiddleInitial": "middle",
    "Surname": "last",
    "LastInitial": "last",
    "SuffixGenerational": "suffix",
    "SuffixOther": "suffix",
    "Nickname": "nickname",
}


def addresses(packages: Path) -> Iterator[Row]:
    """US addresses → ``{"number", "street", "city", …}``."""
    data = read_member(fetch("usaddress", packages), "training/labeled.xml")
    yield from _rows(data, "Address", ADDRESS_FIELDS)


def names(packages: Path) -> Iterator[Row]:
    """Personal names → ``{"title", "first", "last", …}``."""
    data = read_member(fetch("probablepeople", packages), "name_data/labeled/person_labeled.xml")
    yield from _rows(data, "Name", NAME_FIELDS)


def _rows(xml: bytes, title: str, fields: Mapping[str, str]) -> Iterator[Row]:
    for entry in ElementTree.fromstring(xml):
        parts: dict[str, list[str]] = {}
        words = [(token.tag, (token.text or "").strip()) for token in entry]
        if not words or any(tag not in fields for tag, _ in words):
            continue
        for tag, word in words:
            parts.setdefault(fields[tag], []).append(word.rstrip(",;"))
        answer = json.dumps({field: " ".join(value) for field, value in parts.items()}, ensure_ascii=False)
        yield {"prompt": f"{title}: {' '.join(word for _, word in words)}\nJSON:", "completion": f" {answer}"}
