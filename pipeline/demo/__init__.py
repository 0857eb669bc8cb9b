"""The demo: synthetic clips, and the commands that take them to trained models."""
