"""What all four packages share: errors, files, locks, log lines, signals, progress, status files."""
