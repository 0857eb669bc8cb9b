"""From decoded pictures and sound to features."""
