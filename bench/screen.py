"""Progress on stderr while a run goes on, and each bench's table on stdout once it is complete."""

from rich.console import Console

from fastseg.bench import report


def output(width):
    """A console for stdout; of that width where it is no terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=width)


class Progress:
    """A context manager: `out` for what is measured, `tell` for what is going on."""

    def __init__(self, width):
        self.out = output(width)
        self.status = Console(stderr=True).status("starting")

    def __enter__(self):
        self.status.__enter__()
        return self

    def __exit__(self, *exception):
        self.status.__exit__(*exception)

    def tell(self, what):
        self.status.update(what)


class Screen(Progress):
    """`update` and `tell` are what harness.run calls."""

    def __init__(self, width):
        super().__init__(width)
        self.printed = None  # how many benches; None before the header

    def update(self, result, json_path):
        if json_path:
            report.write_json(result, json_path)
        if self.printed is None:
            self.out.print(report.header(result), soft_wrap=True)
            self.printed = 0
        finished = len(result["benches"]) if result["complete"] else len(result["benches"]) - 1
        for bench in result["benches"][self.printed : finished]:
            self.out.print()
            if bench["cases"]:
                self.out.print(bench["title"], style="bold", soft_wrap=True)
                self.out.print(report.table(bench, self.out))
            for line in report.remarks(bench):
                self.out.print(line, soft_wrap=True, markup=False)
        self.printed = finished
