"""Recipes: YAML files that list the runs of a comparison (see `bmlpipe sweep`)."""

__all__: list[str] = []
