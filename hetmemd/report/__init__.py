"""What holds, told to others: Prometheus, the control socket, the journal."""

SOCKET = "/run/hetmemd/control"
"""Where the service answers. It stands here so that a client need not import what the server does."""
