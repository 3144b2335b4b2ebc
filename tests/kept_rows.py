"""A logger that remembers its rows."""

from lightning.pytorch.loggers import Logger


class Rows(Logger):
    name, version, save_dir = "rows", 0, "."

    def __init__(self, folder="."):
        super().__init__()
        self.save_dir, self.rows = str(folder), {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass

    def of(self, *papers):
        """The rows of monitors of these papers, by their step."""
        begin = tuple(f"{paper}/" for paper in papers)
        kept = {
            step: {k: v for k, v in row.items() if k.startswith(begin)} for step, row in self.rows.items()
        }
        return {step: row for step, row in kept.items() if row}
