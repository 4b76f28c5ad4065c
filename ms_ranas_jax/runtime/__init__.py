"""What a run stands on: data, devices, checkpoints and progress."""
