"""The options of a training run: their defaults, their checks, and where they come from."""
