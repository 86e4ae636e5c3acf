"""Constraints on answers: the seam between the sampler and a grammar."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regraft.errors import RegraftError


class ConstraintError(RegraftError):
    """What constrains an answer cannot say which tokens may come."""


class Constraint(Protocol):
    """What an answer has to look like, one token after the other; each answer has one of its own."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, ``[vocabulary]``, or fewer, in which case the others may not; one at least.

        Raises:
            ConstraintError: it cannot be said.
        """

    def accept(self, token: int) -> None:
        """Take note of the token that came.

        Raises:
            ConstraintError: it was not allowed.
        """
