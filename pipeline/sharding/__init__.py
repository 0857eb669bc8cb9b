"""From features to shards."""
