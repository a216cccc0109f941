"""The one exception that stands for something the user can put right."""


class UserError(ValueError):
  """A bad input: its message is one line, what is wrong and what to do.

  Library code raises it; `experiments/common/` prints the line and exits
  with status 2. Anything else that is raised is a defect and keeps its
  traceback.
  """
