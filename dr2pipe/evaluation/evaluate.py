"""The command ``evaluate``: a study from its protocol to its report."""

from __future__ import annotations

from dr2pipe.evaluation.protocol import Protocol
from dr2pipe.evaluation.study import Study, run_study
from dr2pipe.evaluation.summary import write_study_results


def evaluate(protocol: Protocol) -> str | None:
    """Do what is missing of a study, and write its tables and report.

    Returns:
        The table of means as text, or None when interrupted.

    Raises:
        Dr2pipeError: an invalid setting or unusable data, before any work.
    """
    return run_study(Study(protocol), write_study_results)
