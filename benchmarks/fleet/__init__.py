"""A simulation of a fleet, event by event, with the functions that route and place in `manylora.cluster`."""
