"""Tests of the models of bodies."""
