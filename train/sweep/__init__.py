"""Train the runs of a recipe, several at a time, and compare them."""
