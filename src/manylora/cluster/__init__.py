"""The fleet: the choice of a replica for each request, the places of adapters, and the number of replicas."""
