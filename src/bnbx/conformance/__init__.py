"""Whether the operations are right on a device: cases, what they have to give, and running them.

``python -m bnbx selftest`` runs them on the installed package. ``tests/ops`` of the repository has
many more, against oracles of its own.
"""

from __future__ import annotations

from bnbx.conformance.cases import Case, cases
from bnbx.conformance.expected import Output, deviation
from bnbx.conformance.running import Row, run

__all__ = ["Case", "Output", "Row", "cases", "deviation", "run"]
