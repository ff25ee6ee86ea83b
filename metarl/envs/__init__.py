"""Environments: the games and suites there are, and the pools that play them."""
