"""Verbs of money: wallets, budgets, webhooks, invoices with numbers, exports."""
