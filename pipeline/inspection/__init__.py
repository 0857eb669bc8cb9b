"""Contact sheets: look at the samples of a feature folder or of shards."""
