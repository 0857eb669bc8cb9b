"""Run a recipe: many runs, several at a time, and the table at the end."""
