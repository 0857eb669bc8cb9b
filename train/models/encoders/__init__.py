"""Encoders: one modality's input to one feature vector per sample."""
