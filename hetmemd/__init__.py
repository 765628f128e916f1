"""hetmemd: memory policies for cgroups, from user space."""

__version__ = "0.1.0"
