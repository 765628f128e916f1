"""Making another task call set_mempolicy(2): the crash-safe stub and the tracer process."""
