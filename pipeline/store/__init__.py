"""The feature folder: one HDF5 file per clip, and the ledger of all clips."""
