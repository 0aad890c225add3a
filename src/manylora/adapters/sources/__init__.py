"""Sources: the places that adapters come from, behind one Protocol."""
