"""Routes of money beyond the ledger: wallets, budgets, webhooks, invoices with numbers, exports."""
