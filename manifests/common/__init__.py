"""What all four packages share: errors, files, locks, tables, logs, signals, progress and status files."""
