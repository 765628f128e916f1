"""hetmemctl: what a person types and sees."""
