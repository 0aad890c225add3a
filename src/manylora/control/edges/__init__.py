"""The state that edges copy from the control plane."""
