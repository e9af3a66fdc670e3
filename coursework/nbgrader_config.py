"""Settings for nbgrader's own commands in this folder; `animkit course` reads them too."""
from animkit.coursework.course import SANITIZE

c = get_config()  # noqa: F821  nbgrader defines it

c.Execute.timeout = 600                         # seconds for a cell; nbgrader's own limit is 30
c.OverwriteCells.add_missing_cells = True       # a deleted test counts as failed, not as never asked,
c.Autograde.sanitize_preprocessors = SANITIZE   # also where its answer is deleted
c.IgnorePattern.enabled = True                  # or a warning on stderr in a test's cell would cost its points
c.IgnorePattern.pattern = "(?s).*"
