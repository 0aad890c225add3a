"""Base models from where they are published: the catalog, downloads, checksums and GGUF files."""
