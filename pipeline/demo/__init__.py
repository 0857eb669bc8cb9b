"""The whole way on synthetic clips."""
