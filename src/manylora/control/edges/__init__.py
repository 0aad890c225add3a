"""The state that edges copy from the control plane, and the limits that they share."""
