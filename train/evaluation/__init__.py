"""Evaluation of finished runs: predictions, missing modalities, linear probes, results, exports."""
