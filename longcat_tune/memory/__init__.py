"""Fitting the weights and activations; sees modules and lists of blocks, never LongCat."""
