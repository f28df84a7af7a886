"""What a run is computed on: sources, tokenizers, token files, and the order in which they are read."""
