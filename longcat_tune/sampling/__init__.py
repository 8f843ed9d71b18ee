"""Noise to video; takes a model as a function."""
