"""The training loop: the trainer, its optimiser step and what it reports."""
