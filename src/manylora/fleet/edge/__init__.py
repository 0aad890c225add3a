"""The edge's side of a fleet: the transport to all replicas of one base."""
