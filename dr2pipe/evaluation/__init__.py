"""Studies on degraded copies of clean faces: protocols, sweeps, intervals and reports."""
