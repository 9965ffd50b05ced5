"""Commands on folders, photos and videos: one module per command, and what they share.

``restore``, ``inpaint``, ``degrade``, ``cut_faces`` and ``coarse`` stand on ``folder_run``. Each has
a configuration and a function that fills an output folder and returns a ``RunSummary``; ``coarse``
returns one for each variant. ``restore_many`` does the work of ``restore`` on a cluster. ``embed``
writes two files of its own.
"""
