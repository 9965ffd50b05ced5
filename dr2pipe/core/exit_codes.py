"""Exit codes of every command and script."""

from __future__ import annotations

OK = 0  # everything is done
BUG = 1  # an error that no user can mend; its traceback is shown
USAGE = 2  # a setting, path or file that the user can mend
SOME_FAILED = 3  # some pictures failed, others are done
NONE_SUCCEEDED = 4  # every picture failed
INTERRUPTED = 130  # stopped by a signal; the same command goes on later
