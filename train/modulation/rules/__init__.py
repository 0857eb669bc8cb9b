"""The rules: OPM, OGM, and the baselines that they are compared with."""
