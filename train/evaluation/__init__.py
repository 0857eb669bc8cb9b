"""Evaluate finished runs: metrics, missing modalities, linear probes, exports."""
