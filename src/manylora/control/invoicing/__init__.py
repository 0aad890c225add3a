"""Invoices with numbers: drafts, final documents that never change, payments, and credit notes."""
