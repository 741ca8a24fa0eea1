"""Commands of `python -m rdc`."""
