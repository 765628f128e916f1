"""The policy language: drop-in files, inheritance, and a pure resolution with its reasons."""
