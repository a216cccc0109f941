"""The exception for everything that the user can put right."""


class UserError(ValueError):
  """A bad input or a full disk: one line, what is wrong and what to do.

  The library raises it; a script prints the line and exits with status 2.
  Anything else that is raised is a defect and keeps its traceback.
  """
