"""From a manifest to features: plan a run, extract clips in workers, keep the ledger."""
