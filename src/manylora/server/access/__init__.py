"""The access check of the edge: keys, limits and credit of callers, from a copy of the control plane's facts."""
