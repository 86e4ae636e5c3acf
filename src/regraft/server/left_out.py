"""Fields that an answer was made without: said in a header of the response, and in the log.

Regraft-Left-Out: tools;reason="the base's chat template does not take them"
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

HEADER = "Regraft-Left-Out"
_log = logging.getLogger("regraft.server")


def header_of(left_out: Mapping[str, str]) -> dict[str, str]:
    """The response's header.

    Args:
        left_out: field to reason, a few plain words; empty for no header.
    """
    said = ", ".join(f'{name};reason="{reason}"' for name, reason in left_out.items())
    return {HEADER: said} if said else {}


def log(path: str, headers: Mapping[str, str]) -> None:
    """Write what a response's headers say of this, if they do."""
    if HEADER in headers:
        _log.info("%s: left out %s", path, headers[HEADER])
