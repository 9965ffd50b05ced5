"""The command ``evaluate``: a study from its protocol to its report."""

from __future__ import annotations

from dr2pipe.evaluation.protocol import Protocol
from dr2pipe.evaluation.study import Study, run_study
from dr2pipe.evaluation.summary import finish


def evaluate(protocol: Protocol) -> str | None:
    """Do what a protocol asks that is not done yet, and write its tables and report.

    Returns the table of means as text, or None when interrupted.

    Raises:
        ConfigError, ValueError: an invalid setting or unusable data, before any work.
    """
    return run_study(Study(protocol), finish)
