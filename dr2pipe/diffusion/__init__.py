"""Stage 1: DR2 on diffusers models and schedulers."""
