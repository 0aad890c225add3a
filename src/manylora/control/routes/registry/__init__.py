"""Routes of the registry: repositories, versions, uploads, and the operator's over all of them."""
