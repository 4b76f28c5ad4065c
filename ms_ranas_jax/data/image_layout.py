"""Images with axes in another order than (images, height, width, channels).

Nothing fails with them: they train as small pictures of many channels.
"""

from __future__ import annotations

from ms_ranas_jax.errors import UsageError

# As many channels as pictures have: grey, with alpha, colour, with alpha.
_MOST_CHANNELS = 4


def check(what: str, shape: tuple[int, ...]) -> None:
  """Refuses images that look as if the channels came first.

  An image with more channels than pictures have is taken as it is, unless its
  height or width is so small that it can only be the channels.

  Args:
    what: the array, for the message.
    shape: of it, (images, height, width, channels).

  Raises:
    UsageError: with the order that it has to be brought to.
  """
  *_, height, width, channels = shape
  if channels <= _MOST_CHANNELS or min(height, width) > _MOST_CHANNELS:
    return
  order = (0, 2, 3, 1) if height <= width else (0, 1, 3, 2)
  raise UsageError(
    f'{what} is {tuple(shape)}, which looks as if the channels stood at '
    f'{"the height" if height <= width else "the width"}; give (N, H, W, C): '
    f'transpose{order}.'
  )
