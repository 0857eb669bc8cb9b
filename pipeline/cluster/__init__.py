"""Batches of work on Dask, on this machine or on a cluster."""
