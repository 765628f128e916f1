"""The ground under all rooms: syscalls, ABI constants with their source, parsers of /proc and /sys formats."""
