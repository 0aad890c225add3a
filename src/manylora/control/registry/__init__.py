"""The registry: repositories of uploaded adapters, their versions and aliases, uploads and checks."""
