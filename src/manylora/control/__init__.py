"""The control plane: tenants, keys, the registry of uploads, prices, the ledger, invoices. It never imports torch."""
