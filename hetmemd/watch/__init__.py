"""Sources of events. Everything becomes a hint: this cgroup, this task, these files: look again."""
