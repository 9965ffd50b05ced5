"""Time a restore configuration: ``python scripts/benchmark.py CONFIG input=FILE [key=value ...]``."""

import argparse
import sys

from dr2pipe.cli import report_errors
from dr2pipe.commands import quiet_libraries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="YAML file of configs/restore")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--full", action="store_true", help="whole restorations too")
    options = parser.parse_args()
    from dr2pipe.benchmark import benchmark
    from dr2pipe.config import load_config
    from dr2pipe.restore_folder import RestoreConfig

    quiet_libraries()
    config = load_config(RestoreConfig, options.config, ["output=unused", *options.overrides])
    sizes, precisions = options.batch_sizes, options.precisions
    print(benchmark(config, precisions=precisions, batch_sizes=sizes, full=options.full))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
