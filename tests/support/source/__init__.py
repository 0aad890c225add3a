"""Support of the tests that read the source."""
