"""Billing: ledger, prices, invoices, and the reads of usage."""
