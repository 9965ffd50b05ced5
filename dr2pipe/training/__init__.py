"""Training: one accelerate loop (``trainer.py``) and one recipe per file."""
