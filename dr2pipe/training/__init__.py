"""Training: one accelerate loop (``trainer.py``) and one recipe per file.

The command line uses ``recipes.run_recipe``. A recipe uses ``recipe`` (what it is given and gives),
``checkpoints``, ``previews``, ``gan`` and ``stylegan2``.
"""
