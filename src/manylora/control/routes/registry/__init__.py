"""The routes of the registry: repositories, versions, uploads, and those of the operator."""
