"""From shards to normalised batches."""
