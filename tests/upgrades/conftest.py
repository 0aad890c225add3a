"""Databases for the tests of upgrades: those of the control plane's tests."""

from tests.control.conftest import empty_url, postgres

__all__ = ["empty_url", "postgres"]
