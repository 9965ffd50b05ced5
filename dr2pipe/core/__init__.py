"""What all other rooms use: configuration, files, pictures, processes, records, model names.

Each module is used by its own name: ``config`` (settings), ``models`` (models and built-in files by
name), ``errors``, ``images`` (a package), ``files``, ``records`` and ``seeding`` first of all.
"""
