"""What touches a device: inputs, the gate, timers, ceilings, the environment, providers and the runner."""
