"""The training loop: steps, optimisers, evaluation after each epoch, checkpoints."""
