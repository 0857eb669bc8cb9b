"""From clips to features to shards: decoding, front ends, feature store, Dask, the command line."""
