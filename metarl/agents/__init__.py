"""Base agents: networks, one agent, groups of peers, populations."""
