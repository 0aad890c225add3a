"""Databases for the tests of upgrades: those of the control plane's tests."""

from tests.control.conftest import postgres

__all__ = ["postgres"]
