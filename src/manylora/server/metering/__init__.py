"""Metering: a usage record for each inference request, on its way to the ledger."""
