"""The life of a LoRA's weights: found at a source, checked, packed once, kept in tiers, placed on the device."""
