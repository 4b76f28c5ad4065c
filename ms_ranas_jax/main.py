"""The command: python -m ms_ranas_jax.main --config=digits, or ms-ranas-jax."""

from __future__ import annotations

from ms_ranas_jax.runtime import interruption


def run() -> None:
  """The entry point of the command."""
  interruption.end_at_once()
  # Imported here, where an interrupt ends quietly.
  from ms_ranas_jax import command

  command.run()


if __name__ == '__main__':
  run()
