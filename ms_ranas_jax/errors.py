"""The error that a user can mend."""


class UsageError(ValueError):
  """Bad input: a config value, a file or a work directory.

  The message is one sentence that names the field or file and the mend. The
  command line prints it alone, without a traceback, and exits with status 2.
  """
