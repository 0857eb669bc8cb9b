"""The rules: OPM, OGM, and the baselines with which they are compared."""
