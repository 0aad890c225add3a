"""Commands of the catalogue: shares of versions, the declared state of a server, and its moves from other servers."""
