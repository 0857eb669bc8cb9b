"""The sample format: write, index, verify, order and read shards. Knows no video and no model."""
