"""Studies on degraded copies of clean faces: protocols, sweeps, intervals and reports.

The command line uses ``evaluate`` (a study of a protocol), ``sweep`` (settings of DR2),
``fit_auto`` and ``pristine`` (what is fitted on studies and on pictures).
"""
