"""The catalog of base models, and their downloads, checksums and GGUF files."""
