"""Forms of the control plane's requests and replies."""
