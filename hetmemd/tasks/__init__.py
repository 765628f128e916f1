"""The cgroup tree by identity, and which task is where."""
