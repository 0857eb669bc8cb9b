"""Video and audio files: demux, decode, and say what is wrong with them."""
