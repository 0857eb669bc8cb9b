"""Encoders, fusion, and the multimodal model made of them."""
