"""The plain loop of `trainer: torch`: it trains what a module builds."""
