"""Metering: a usage record for each inference request, from the edge to the ledger."""
