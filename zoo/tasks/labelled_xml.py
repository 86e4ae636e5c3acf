"""Rows from the hand-labelled XML of usaddress (MIT) and probablepeople (MIT): text in, JSON of its parts out."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from zoo.packages import fetch, read_member
from zoo.rows import Row

# A field's place here is its place in the answer, so that one schema lists them in order.
ADDRESS_FIELDS = {
    "Recipient": "recipient",
    "BuildingName": "building",
    "LandmarkName": "building",
    "AddressNumber": "number",
    "AddressNumberSuffix": "number",
    "StreetNamePreDirectional": "direction",
    "StreetNamePostDirectional": "direction",
    "StreetNamePreType": "street",
    "StreetName": "street",
    "StreetNamePostType": "type",
    "SubaddressType": "unit",
    "SubaddressIdentifier": "unit",
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
COMPANY_FIELDS = {
    "CorporationName": "name",
    "ShortForm": "short",
    "CorporationNameOrganization": "kind",
    "CorporationCommitteeType": "committee",
    "CorporationNameBranchType": "branch",
    "CorporationNameBranchIdentifier": "branch",
    "CorporationNameAndCompany": "partners",
    "CorporationLegalType": "legal",
}


def addresses(packages: Path) -> Iterator[Row]:
    """US addresses → ``{"number", "street", "city", …}``."""
    data = read_member(fetch("usaddress", packages), "training/labeled.xml")
    return _rows(data, "Split the US address into JSON.", ADDRESS_FIELDS)


def names(packages: Path) -> Iterator[Row]:
    """Personal names → ``{"title", "first", "last", …}``."""
    data = read_member(fetch("probablepeople", packages), "name_data/labeled/person_labeled.xml")
    rows = _rows(data, "Split the person's name into JSON.", NAME_FIELDS)
    return (row for row in rows if " " in row.text)  # alone, "Brant" may be a first name or a last one


def companies(packages: Path) -> Iterator[Row]:
    """Company names → ``{"name", "kind", "legal", …}``."""
    data = read_member(fetch("probablepeople", packages), "name_data/labeled/company_labeled.xml")
    return _rows(data, "Split the company's name into JSON.", COMPANY_FIELDS)


def _rows(xml: bytes, instruction: str, fields: Mapping[str, str]) -> Iterator[Row]:
    order = list(dict.fromkeys(fields.values()))
    for entry in ElementTree.fromstring(xml):
        parts: dict[str, list[str]] = {}
        words = [(token.tag, (token.text or "").strip()) for token in entry]
        if not words or any(tag not in fields for tag, _ in words):
            continue
        for tag, word in words:
            parts.setdefault(fields[tag], []).append(word.rstrip(",;"))
        answer = {field: " ".join(parts[field]) for field in order if field in parts}
        text = " ".join(word for _, word in words)
        source = re.sub(r"[\W_]+", " ", text.casefold()).strip()
        yield Row(text, json.dumps(answer, ensure_ascii=False), text, (source,), instruction)
