"""Commands on folders: one module per command, all on top of ``folder_run``.

``restore``, ``inpaint``, ``degrade`` and ``coarse`` each have a configuration and a function that
fills an output folder and returns a ``RunSummary``. ``embed`` writes two files of its own.
"""
