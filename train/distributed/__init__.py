"""Data parallelism: the process group, and replicas that must stay equal."""
