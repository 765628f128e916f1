"""Regions, where pages are, the cheapest set of moves, and moving within budgets."""
