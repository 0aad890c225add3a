"""Wallets: grants of credit with their order and their end, and the one ledger of what becomes of them."""
