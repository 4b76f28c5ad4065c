"""What a user says of how pictures are read."""

from __future__ import annotations

import dataclasses
import re

from ms_ranas_jax.errors import UsageError

# Names of datasets of pictures; the second goes on with a name.
FOLDER, TFDS = 'folder', 'tfds:'
TEST_FRACTION = 0.2
UNREADABLE = REFUSE, SKIP = 'refuse', 'skip'
LARGEST_SIDE = 4096
_SIZE = re.compile(r'([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?')


@dataclasses.dataclass(frozen=True)
class Options:
  """How pictures with classes are read.

  Attributes:
    image_size: (height, width) that all pictures are brought to; None is the
      size that all of them have.
    test_fraction: of every class, where there are no parts train and test.
    unreadable: 'refuse' what is no picture, or 'skip' it.
  """

  image_size: tuple[int, int] | None = None
  test_fraction: float = TEST_FRACTION
  unreadable: str = REFUSE


DEFAULT = Options()


def reads_pictures(name: str) -> bool:
  """Returns whether a dataset is read as its user says.

  Args:
    name: as in `dataset.name` of a config.
  """
  return name == FOLDER or name.startswith(TFDS)


def parse_size(text: str) -> tuple[int, int] | None:
  """Returns (height, width) of '96' or '96x128', None of ''.

  Raises:
    UsageError: it is no size.
  """
  if not text:
    return None
  found = _SIZE.fullmatch(text)
  sides = [int(side) for side in found.groups() if side] if found else []
  if not sides or max(sides) > LARGEST_SIDE:
    raise UsageError(
      f"image_size is {text!r}; give '', or pixels such as '96' or '96x128' "
      f'(height x width), at most {LARGEST_SIDE}.'
    )
  return sides[0], sides[-1]
