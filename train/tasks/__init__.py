"""What predictions are scored against: one task per kind of target."""
