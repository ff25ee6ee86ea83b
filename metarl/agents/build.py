"""From the configuration to an agent; the only place that joins rule and network."""

from __future__ import annotations

from metarl.agents.agent import Agent
from metarl.agents.networks import build_network
from metarl.config import AgentConfig
from metarl.rules.base import UpdateRule
from metarl.rules.checked import checked


def build_agent(
    config: AgentConfig, rule: UpdateRule, num_actions: int, *, lifetime_env_steps: int
) -> Agent:
    """Return the static description of agents that learn by ``rule``.

    Raises:
      UserError: its spec is none. What else a user's own rule returns is checked where
        it is traced first.
    """
    rule = checked(rule)
    return Agent(
        rule=rule,
        network=build_network(config.network, rule.spec(num_actions), num_actions),
        num_actions=num_actions,
        optimizer=config.optimizer,
        lifetime_env_steps=lifetime_env_steps,
    )
