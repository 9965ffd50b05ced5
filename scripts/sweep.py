"""DR2's settings tried on degraded clean faces: ``accelerate launch scripts/sweep.py CONFIG [key=value ...]``."""

import sys

from dr2pipe.cli import script

if __name__ == "__main__":
    sys.exit(script("sweep"))
