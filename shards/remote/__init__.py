"""Shards at an address (HTTP, S3, GCS): download, cache, prefetch."""
