"""Compare a set of shards with its index, and name what is damaged."""
