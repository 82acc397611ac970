"""Which model is loaded, and how does it change? The state machine, the switch thread and admission to the runner."""
