"""Recipes: YAML files that list the runs of a comparison (see `bmlpipe sweep`)."""
