"""docs/benchmarks.md: its sections, tables and pictures, written from the result files."""
