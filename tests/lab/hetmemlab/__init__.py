"""The lab: throw-away QEMU guests with several memory nodes, for tests that one node cannot serve."""
