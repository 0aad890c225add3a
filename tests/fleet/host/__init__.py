"""Tests of `manylora.fleet.host`: the process beside an engine that serves several edges."""
