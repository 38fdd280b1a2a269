"""Breaks a running cluster on purpose, one fault at a time under steady traffic, and judges what clients got."""
