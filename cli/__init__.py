"""The `capvisor` command: one module a verb."""
