"""Stage 1: DR2 on diffusers models and schedulers.

Other rooms use ``stage1`` (stage 1 from its settings), ``dr2`` (the algorithm), ``networks`` (face
DDPMs from folders), ``timesteps``, ``low_pass`` and ``pipeline`` (the format of a model's folder).
"""
