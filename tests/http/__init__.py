"""Tests of the rules that server and control plane share."""
