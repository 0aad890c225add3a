"""The placer that runs the replicas of dedicated deployments on the machine of their control plane."""
