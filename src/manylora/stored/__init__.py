"""Files and batches of tenants in the form in which the control plane and its edges exchange them."""
