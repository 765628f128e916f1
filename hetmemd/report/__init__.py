"""What holds, told to others: Prometheus, the control socket, the journal."""
