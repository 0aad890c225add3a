"""HTTP rules that the server and the control plane share: origins, connections, scopes, and errors' bodies."""
