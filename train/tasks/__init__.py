"""What a prediction is scored against: one task per kind of target."""
