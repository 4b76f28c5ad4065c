"""What a run stands on: the loop, devices, checkpoints and progress."""
