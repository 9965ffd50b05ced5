"""What can go wrong that a user can mend.

Everything else that is raised is a bug: the command line shows its traceback.
"""

from __future__ import annotations


class Dr2pipeError(ValueError):
    """A user can mend this; the message names what is wrong and what would be right."""


class ConfigError(Dr2pipeError):
    """A configuration names an unknown key, has a value of the wrong type, or lacks one."""


class PictureError(Dr2pipeError):
    """A file is no picture that can be read, or not one that fits its use."""


class CheckpointError(Dr2pipeError):
    """A foreign checkpoint cannot be read, or does not fit the network that it is for."""


class FetchError(Dr2pipeError):
    """A file could not be downloaded whole."""


class FolderInUseError(Dr2pipeError):
    """Another run is writing into the same output folder."""
